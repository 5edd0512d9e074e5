"""Record each prediction with its image and weights, so that a correction can be compared with it."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from totalspineseg_server.corrections import history
from totalspineseg_server.errors import StorageError
from totalspineseg_server.fields import from_fields
from totalspineseg_server.files import read_json, staged_folder, write_json

logger = logging.getLogger(__name__)

RECORD_FILE = "record.json"
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Form of an id: clients name predictions, and an id is the name of a folder."""
UNLISTED = "unlisted"
"""Folder for predictions for images that are not among the studies, such as those of a session: one for each image,
with its hash behind this word, so that no request has to look through all of them. Older records lie in one folder."""


@dataclass(frozen=True)
class PredictionRecord:
    """One prediction.

    Attributes:
        id: Sorts by time.
        image: Image id; empty if the image is not among the studies.
        model: Name of the model.
        versions: Weights by step ("step1" -> version).
        seconds: Time of each stage.
        settings: All settings that applied, defaults included.
        numbering: Report on the levels; None if the method makes none.
        client: Who asked for it: the client id and, with authentication, the user.
        image_sha256: Hash of the image then; empty in older records.
        created: UTC, ISO 8601.
        disagreement: How much the networks contradict themselves, 0..1: ``steps`` (share of the discs on which step 1
            and step 2 differ) and ``mirror`` (share of the structures on which the image and its mirror image differ).
            What was not measured is missing.
        marked: Codes of the levels that the reply named as doubtful; empty in older records.
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
    marked: tuple[int, ...] = ()


class PredictionStore:
    """Prediction records below a history folder; append-only.

    A record that cannot be read is logged and skipped, so that nothing else fails.
    """

    def __init__(self, root: Path) -> None:
        self._root = root / "predictions"

    def keep(self, record: PredictionRecord) -> None:
        """Add a record.

        Raises:
            StorageError: It could not be written.
        """
        with staged_folder(self._folder(record.image, record.image_sha256) / record.id) as entry:
            write_json(entry / RECORD_FILE, asdict(record))

    def ids(self, image_id: str, image_sha256: str = "") -> tuple[str, ...]:
        """Return the ids of all predictions for an image, oldest first; outside the studies its hash is needed."""
        return history.names(self._folder(image_id, image_sha256))

    def of_image(self, image_id: str) -> tuple[PredictionRecord, ...]:
        """Return all predictions for an image, oldest first."""
        return tuple(self.newest_first(image_id))[::-1]

    def newest_first(self, image_id: str, image_sha256: str = "") -> Iterator[PredictionRecord]:
        """Yield all predictions for an image, newest first; each is read when it is asked for. See ``ids``."""
        return _readable(reversed(history.entries(self._folder(image_id, image_sha256))))

    def latest(self, image_id: str, *clients: str) -> PredictionRecord | None:
        """Return the newest prediction for an image, preferably one for ``clients``; None if there is none."""
        newest = None
        for record in self.newest_first(image_id):
            if not any(clients) or (record.client and record.client in clients):
                return record
            newest = newest or record
        return newest

    def find(self, image_id: str, prediction_id: str, image_sha256: str = "") -> PredictionRecord | None:
        """Return the prediction of an image with this id, or None. See ``ids``."""
        folders = dict.fromkeys((self._folder(image_id, image_sha256), self._folder(image_id)))
        return self._in_one_of(folders, prediction_id)

    def of_content(self, image_id: str, prediction_id: str) -> PredictionRecord | None:
        """Return the prediction with this id of an image, or of another one with the same content; None for neither."""
        return self.find(image_id, prediction_id) or self.anywhere(prediction_id)

    def anywhere(self, prediction_id: str) -> PredictionRecord | None:
        """Return the prediction with this id, whatever its image is called, or None."""
        return self._in_one_of(history.entries(self._root), prediction_id)

    def _in_one_of(self, folders: Iterable[Path], prediction_id: str) -> PredictionRecord | None:
        if not ID.fullmatch(prediction_id):
            return None
        entries = (folder / prediction_id for folder in folders)
        return next(_readable(entry for entry in entries if entry.is_dir()), None)

    def _folder(self, image_id: str, image_sha256: str = "") -> Path:
        # Image folders have a prefix of their own, so that no image id equals the name of another folder.
        if image_id:
            return self._root / f"image-{history.folder_name(image_id)}"
        return self._root / (f"{UNLISTED}-{image_sha256}" if image_sha256 else UNLISTED)


def _readable(entries: Iterable[Path]) -> Iterator[PredictionRecord]:
    """Yield the records of some entries; one that cannot be read is logged and skipped."""
    for entry in entries:
        try:
            yield from_fields(PredictionRecord, read_json(entry / RECORD_FILE), f"of prediction {entry.name}")
        except StorageError as error:
            logger.warning("A prediction cannot be read and is skipped: %s", error)
