"""Estimate and store how doubtful each image's result is; a score is valid until image or weights change.

``<history>/scores/<image>.json`` holds one score. It is derived from the record of a prediction, so it can be deleted
and made again.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from totalspineseg_server.corrections import ids
from totalspineseg_server.corrections.predictions import MapStore, PredictionRecord, PredictionStore
from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import from_fields, read_json, storage_errors, write_json
from totalspineseg_server.infers.disagreement import MIRROR, STEPS
from totalspineseg_server.numbering.findings import IMAGE
from totalspineseg_server.trust import is_doubtful

DOUBTFUL: Final = 0.5
"""Chance that doubtful names are wrong for a reason that their probability does not cover."""
FINDING: Final = 0.2
"""Chance that a reader has to correct something because of one finding."""
OTHER_ANSWER: Final = 0.5
"""Chance that a level on which two predictions differ is wrong: either of them may be right."""
NOTHING_NAMED: Final = 1.0
"""Doubt about a scan in which no spine was found."""
logger = logging.getLogger(__name__)

WHOLE_MODEL: Final = "totalspineseg"
"""The model whose predictions are scored: both steps, all structures."""

Refused = Literal["", "no spine", "image"]
"""Why there is no result: no spine was found, or the image cannot be read. Empty if there is a result."""


@dataclass(frozen=True)
class Parts:
    """The parts of the doubt about a result, each from 0 (none) to 1; None if not measured.

    Attributes:
        names: Chance that not all names are right.
        findings: Chance that a finding of the checks needs a correction.
        steps: Share of the discs that step 1 and step 2 label differently.
        mirror: Share of the structures that differ between an image and its left-right mirror.
        scale: Share of the levels that differ between the image and the image at another size.
    """

    names: float | None = None
    findings: float | None = None
    steps: float | None = None
    mirror: float | None = None
    scale: float | None = None

    @property
    def doubt(self) -> float | None:
        """The chance that something is wrong, if the parts are independent; None if nothing was measured."""
        return _any_of(self.names, self.findings, self.disagreement)

    @property
    def disagreement(self) -> float | None:
        """The chance that something is wrong, by the differences between predictions alone; None if not measured."""
        levels = (None if part is None else OTHER_ANSWER * part for part in (self.steps, self.scale))
        return _any_of(self.mirror, *levels)

    def as_json(self) -> dict[str, float | None]:
        """Return the parts for records and replies, rounded."""
        return {name: None if value is None else round(value, 4) for name, value in asdict(self).items()}


def parts_of(numbering: Mapping[str, Any] | None, disagreement: Mapping[str, float]) -> Parts:
    """Return the parts of the doubt from the record of a prediction.

    Args:
        numbering: The prediction's report, see ``numbering.report``; None if there is none. Not modified.
        disagreement: The prediction's differences, see ``PredictionRecord``. Not modified.
    """
    findings = [f for f in (numbering or {}).get("findings", ()) if f.get("kind") != IMAGE]
    return Parts(
        names=_names(numbering or {}),
        findings=None if numbering is None else 1 - (1 - FINDING) ** len(findings),
        steps=disagreement.get(STEPS),
        mirror=disagreement.get(MIRROR),
    )


def _names(numbering: Mapping[str, Any]) -> float | None:
    probability = numbering.get("probability")
    if probability is None:
        return None
    return 1 - float(probability) * (1 - DOUBTFUL if is_doubtful(numbering) else 1)


def _any_of(*parts: float | None) -> float | None:
    known = [part for part in parts if part is not None]
    if not known:
        return None
    sound = 1.0
    for part in known:
        sound *= 1 - part
    return 1 - sound


@dataclass(frozen=True)
class Score:
    """How doubtful the result for an image is.

    Attributes:
        image: Image id.
        fingerprint: Fingerprint of the scored image, see ``SpineDatastore.fingerprint``.
        image_sha256: Hash of the image's content.
        versions: Weights by step.
        prediction: Id of the prediction from which it was derived; empty if there was no result.
        parts: The parts of the doubt.
        codes: Levels in view.
        refused: Why there is no result.
        message: The reason in a sentence, if there is no result.
        created: UTC, ISO 8601.
        predicted_as: Image id under which the prediction is recorded, empty for an image outside the studies; None for
            its own id.
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
    created: str = field(default_factory=ids.now_text)
    predicted_as: str | None = None

    @property
    def doubt(self) -> float | None:
        """The doubt from 0 (none) to 1; None if it is not known, for example if the image cannot be read."""
        return NOTHING_NAMED if self.refused == "no spine" else self.parts.doubt

    @property
    def disagreement(self) -> float | None:
        """The doubt that comes from differences between predictions alone, see ``Parts.disagreement``."""
        return NOTHING_NAMED if self.refused == "no spine" else self.parts.disagreement

    def as_note(self) -> dict[str, Any]:
        """Return the note that is stored with an image when it is offered, and later with its label."""
        doubt = self.doubt
        return {
            "doubt": None if doubt is None else round(doubt, 4),
            "parts": self.parts.as_json(),
            "prediction": self.prediction,
            "versions": dict(self.versions),
            "refused": self.refused,
        }


class Scores:
    """The scores in a history folder.

    Args:
        root: The history folder.
        predictions: Records from which scores are derived.
        maps: Maps of predictions, including those made under another name of the image.
    """

    def __init__(self, root: Path, predictions: PredictionStore, maps: MapStore) -> None:
        self._folder = root / "scores"
        self._predictions = predictions
        self._maps = maps
        self._memory: dict[str, tuple[tuple[int, int, int] | None, Score | None]] = {}

    def of(self, image_id: str, fingerprint: str) -> Score | None:
        """Return the score, with any weights, of an image as it is now, or None.

        There is no score without a fingerprint, or if the record is damaged: then it is made again.
        """
        if not fingerprint:
            return None
        try:
            file = self._file(image_id)
            stat = file.stat()
        except OSError:
            return None
        # Written whole under another inode each time. A page asks for all of them every few seconds.
        version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        known, score = self._memory.get(image_id, (None, None))
        if known != version:
            score = self._read(image_id, file)
            self._memory[image_id] = (version, score)
        return score if score is not None and score.fingerprint == fingerprint else None

    def _read(self, image_id: str, file: Path) -> Score | None:
        try:
            record = read_json(file)
            parts = from_fields(Parts, record.pop("parts", None), f"of the score of {image_id!r}")
            score = from_fields(Score, record, f"of the score of {image_id!r}")
        except StorageError as error:
            logger.warning("The score of image %s cannot be read, so it is computed again: %s", image_id, error)
            return None
        return replace(score, parts=parts) if score.image == image_id else None

    def record_of(self, score: Score) -> PredictionRecord | None:
        """Return the record of the prediction that a score was derived from; None if it is gone."""
        image_id = score.image if score.predicted_as is None else score.predicted_as
        return self._predictions.find(image_id, score.prediction, score.image_sha256) if score.prediction else None

    def keep(self, score: Score) -> None:
        """Store a score in place of the previous one.

        Raises:
            StorageError: It could not be written; the previous one is still stored.
        """
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._file(score.image), asdict(score))

    def derive(self, image_id: str, fingerprint: str, image_sha256: str, versions: Mapping[str, str]) -> Score | None:
        """Return the score from the newest prediction for an image's content, without storing it or running a network.

        Args:
            image_id: The image.
            fingerprint: The image's fingerprint, taken before it was hashed.
            image_sha256: Hash of the image's content.
            versions: Weights by step. Not modified.

        Returns:
            None if these weights did not predict the image, or only with a pin.
        """
        for record in self._records(image_id, image_sha256):
            if record.model != WHOLE_MODEL or dict(record.versions) != dict(versions) or record.settings.get("pins"):
                continue
            try:
                parts = parts_of(record.numbering, record.disagreement)
                codes = tuple(sorted({int(level["code"]) for level in (record.numbering or {}).get("levels", ())}))
            except (AttributeError, KeyError, TypeError, ValueError):
                # Another version of this software may have written the report differently.
                continue
            # Names without a probability come from the iterative method, which states no doubts.
            if parts.names is not None:
                other = None if record.image == image_id else record.image
                score = Score(image_id, fingerprint, image_sha256, dict(versions), record.id, parts, codes)
                return replace(score, predicted_as=other)
        return None

    def _records(self, image_id: str, image_sha256: str) -> Iterator[PredictionRecord]:
        """Yield the predictions for an image's content, newest first; those under the image's own name come before
        others."""
        yield from (r for r in self._predictions.newest_first(image_id) if r.image_sha256 == image_sha256)
        for prediction, name in self._maps.made_for(image_sha256):
            if name == image_id:
                continue
            record = self._predictions.find(name, prediction, image_sha256)
            if record is not None:
                yield record

    def _file(self, image_id: str) -> Path:
        return self._folder / f"image-{ids.folder_name(image_id)}.json"
