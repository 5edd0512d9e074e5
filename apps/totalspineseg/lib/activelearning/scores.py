"""How doubtful each image's result is, kept per image until its content or the weights change.

``<history>/scores/<image>.json`` holds one score. It is made of the record of a prediction, so that it can be deleted
and made again.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from lib.activelearning.doubt import NOTHING_NAMED, Parts, parts_of
from lib.corrections import history
from lib.corrections.drawn_maps import DrawnMaps
from lib.corrections.predictions import PredictionRecord, PredictionStore
from lib.errors import StorageError
from lib.fields import from_fields
from lib.volume_io import write_atomic

logger = logging.getLogger(__name__)

WHOLE_MODEL: Final = "totalspineseg"
"""The model whose predictions are scored: both steps, all structures."""

Refused = Literal["", "no spine", "image"]
"""Why there is no result: no spine was found, or the image cannot be read; empty where there is one."""


@dataclass(frozen=True)
class Score:
    """How doubtful the result for one image is.

    Attributes:
        image: Image id.
        fingerprint: See ``StudiesDatastore.fingerprint``: whether the image is still the one that was scored.
        image_sha256: Hash of its content.
        versions: Weights by step.
        prediction: Id of the record it was made of; empty where there was no result.
        parts: See ``Parts``.
        codes: Levels in view.
        refused: Why there is no result.
        message: The reason in a sentence, where there is no result.
        created: UTC, ISO 8601.
    """

    image: str
    fingerprint: str
    image_sha256: str
    versions: Mapping[str, str]
    prediction: str = ""
    parts: Parts = field(default_factory=Parts)
    codes: tuple[int, ...] = ()
    refused: Refused = ""
    message: str = ""
    created: str = field(default_factory=history.now_text)

    @property
    def doubt(self) -> float | None:
        """0 (none) to 1; None where it cannot be told, as of an image that cannot be read."""
        return NOTHING_NAMED if self.refused == "no spine" else self.parts.doubt

    @property
    def disagreement(self) -> float | None:
        """The same of what the networks answer differently when they are asked in another way."""
        return NOTHING_NAMED if self.refused == "no spine" else self.parts.disagreement

    def as_note(self) -> dict[str, Any]:
        """What is noted where the image is offered, and stays with its label."""
        doubt = self.doubt
        return {
            "doubt": None if doubt is None else round(doubt, 4),
            "parts": self.parts.as_json(),
            "prediction": self.prediction,
            "versions": dict(self.versions),
            "refused": self.refused,
        }


class Scores:
    """Scores below a history folder.

    Args:
        root: The history folder.
        predictions: Records that scores are made of.
        maps: Maps of predictions, which know those that were made under another name of the image.
    """

    def __init__(self, root: Path, predictions: PredictionStore, maps: DrawnMaps) -> None:
        self._folder = root / "scores"
        self._predictions = predictions
        self._maps = maps

    def of(self, image_id: str, fingerprint: str) -> Score | None:
        """The score of an image as it is now, whatever weights it is of; None where there is none.

        Of an image whose fingerprint is not known there is none. A record that is damaged counts as none: it is made
        again.
        """
        file = self._file(image_id)
        if not fingerprint or not file.is_file():
            return None
        try:
            record = history.read_json(file)
            parts = from_fields(Parts, record.pop("parts", None), f"of the score of {image_id!r}")
            score = from_fields(Score, record, f"of the score of {image_id!r}")
        except StorageError as error:
            logger.warning("a score is passed over: %s", error)
            return None
        return replace(score, parts=parts) if (score.image, score.fingerprint) == (image_id, fingerprint) else None

    def keep(self, score: Score) -> None:
        """Keep a score in place of the one before.

        Raises:
            StorageError: It could not be written; the one before is still there.
        """
        with history.storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        record = asdict(score)
        write_atomic(self._file(score.image), lambda temporary: history.write_json(temporary, record))

    def derive(self, image_id: str, fingerprint: str, image_sha256: str, versions: Mapping[str, str]) -> Score | None:
        """Make the score from the newest prediction for what an image holds; nothing is kept, no network runs.

        Args:
            image_id: The image.
            fingerprint: Its fingerprint, taken before it was hashed.
            image_sha256: Hash of its content.
            versions: Weights by step.

        Returns:
            None where these weights did not predict it, or only with a level that a reader fixed.
        """
        for record in self._records(image_id, image_sha256):
            if record.model != WHOLE_MODEL or dict(record.versions) != dict(versions) or record.settings.get("pins"):
                continue
            try:
                parts = parts_of(record.numbering, record.disagreement)
                codes = tuple(sorted({int(level["code"]) for level in (record.numbering or {}).get("levels", ())}))
            except (AttributeError, KeyError, TypeError, ValueError):
                # Another version of this software wrote it otherwise.
                continue
            # Without a chance of its names it was named by the iterative method, which knows no doubts.
            if parts.names is not None:
                return Score(image_id, fingerprint, image_sha256, dict(versions), record.id, parts, codes)
        return None

    def _records(self, image_id: str, image_sha256: str) -> Iterator[PredictionRecord]:
        """Predictions for the content of an image, newest first; those of its own name before others."""
        yield from (r for r in self._predictions.newest_first(image_id) if r.image_sha256 == image_sha256)
        for kept in self._maps.newest_first(image_sha256):
            if kept.image == image_id:
                continue
            record = self._predictions.find(kept.image, kept.prediction, image_sha256)
            if record is not None:
                yield record

    def _file(self, image_id: str) -> Path:
        return self._folder / f"image-{history.folder_name(image_id)}.json"
