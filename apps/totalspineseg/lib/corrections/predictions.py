"""Records of what was predicted for which image by which weights, so that a correction knows what it corrects."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lib.corrections import history
from lib.errors import StorageError
from lib.fields import from_fields
from lib.files import read_json, staged_folder, write_json

logger = logging.getLogger(__name__)

RECORD_FILE = "record.json"
UNLISTED = "unlisted"
"""Folder for predictions on images that are not in the studies, such as those of a session."""


@dataclass(frozen=True)
class PredictionRecord:
    """One prediction.

    Attributes:
        id: Sorts by time.
        image: Image id; empty when the image is not among the studies.
        model: Name of the model that was asked.
        versions: Weights by step ("step1" -> version).
        seconds: Time of each stage.
        settings: As they applied, defaults included.
        numbering: Report on the levels; None when the method gives none.
        client: Who asked: client id and, with authentication, user.
        image_sha256: Hash of the image as it was; empty in older records.
        created: UTC, ISO 8601.
        disagreement: What the networks answered differently in two ways of asking, 0..1: ``steps`` (share of the discs
            that step 1 and step 2 do not show alike) and ``mirror`` (share of the structures that the image and its
            mirror do not show alike); one that was not measured is left out.
    """

    id: str
    image: str
    model: str
    versions: Mapping[str, str]
    seconds: Mapping[str, float]
    settings: Mapping[str, Any]
    numbering: Mapping[str, Any] | None
    client: str
    image_sha256: str = ""
    created: str = field(default_factory=history.now_text)
    disagreement: Mapping[str, float] = field(default_factory=dict)


class PredictionStore:
    """Prediction records below a history folder; append-only.

    A record that cannot be read is logged and passed over: nothing else may fail for it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root / "predictions"

    def keep(self, record: PredictionRecord) -> None:
        """Add a record.

        Raises:
            StorageError: It could not be written.
        """
        with staged_folder(self._folder(record.image) / record.id) as entry:
            write_json(entry / RECORD_FILE, asdict(record))

    def ids(self, image_id: str) -> tuple[str, ...]:
        """Ids of all predictions for an image, oldest first."""
        return history.names(self._folder(image_id))

    def of_image(self, image_id: str) -> tuple[PredictionRecord, ...]:
        """All predictions for an image, oldest first."""
        return tuple(self.newest_first(image_id))[::-1]

    def newest_first(self, image_id: str) -> Iterator[PredictionRecord]:
        """All predictions for an image, each read when it is asked for."""
        return _readable(reversed(self._entries(image_id)))

    def latest(self, image_id: str, *clients: str) -> PredictionRecord | None:
        """The newest prediction for an image, preferring those that ``clients`` asked for; None when there is none."""
        newest = None
        for record in self.newest_first(image_id):
            if not any(clients) or (record.client and record.client in clients):
                return record
            newest = newest or record
        return newest

    def find(self, image_id: str, prediction_id: str) -> PredictionRecord | None:
        """The prediction of an image with this id, or None; "" for one that is not among the studies."""
        return next(_readable(entry for entry in self._entries(image_id) if entry.name == prediction_id), None)

    def anywhere(self, prediction_id: str) -> PredictionRecord | None:
        """The prediction with this id, whatever its image is called, or None."""
        every = (entry for folder in history.entries(self._root) for entry in history.entries(folder))
        return next(_readable(entry for entry in every if entry.name == prediction_id), None)

    def _entries(self, image_id: str) -> tuple[Path, ...]:
        return history.entries(self._folder(image_id))

    def _folder(self, image_id: str) -> Path:
        # Image folders have a prefix of their own, so that no image id can be the name of another folder.
        return self._root / (f"image-{history.folder_name(image_id)}" if image_id else UNLISTED)


def _readable(entries: Iterable[Path]) -> Iterator[PredictionRecord]:
    """Yield the records of some entries; one that cannot be read is logged and passed over."""
    for entry in entries:
        try:
            yield from_fields(PredictionRecord, read_json(entry / RECORD_FILE), f"of prediction {entry.name}")
        except StorageError as error:
            logger.warning("a prediction is passed over: %s", error)
