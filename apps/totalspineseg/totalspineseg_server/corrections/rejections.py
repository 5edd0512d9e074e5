"""Record results that readers rejected with a reason: these scans must be drawn.

``<history>/rejections/<image>/<id>/record.json`` is a rejection, or takes the previous one back; records never change.
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from totalspineseg_server.corrections import history
from totalspineseg_server.corrections.receipts import Sender
from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import from_fields, read_json, staged_folder, write_json

logger = logging.getLogger(__name__)

RECORD_FILE: Final = "record.json"
MAX_REASON: Final = 500
"""Largest number of characters in a reason: a sentence or two."""


@dataclass(frozen=True)
class Rejection:
    """A rejection.

    Attributes:
        id: Sorts by time, among corrections too.
        image: Image id.
        reason: The reason in the reader's words; empty if this takes the previous rejection back.
        user: See ``Sender``.
        client: See ``Sender``.
        prediction: Id of the rejected prediction; empty if there was none.
        received: UTC, ISO 8601.
    """

    id: str
    image: str
    reason: str
    user: str
    client: str
    prediction: str
    received: str

    @property
    def reader(self) -> str:
        """Who rejected it, under the name that other readers see."""
        return self.client or self.user


class Rejections:
    """The rejections below a history folder; append-only."""

    def __init__(self, root: Path) -> None:
        self._root = root / "rejections"

    def add(self, image_id: str, reason: str, sender: Sender, prediction: str = "") -> Rejection:
        """Record a rejection; without a reason, take the previous one back.

        Raises:
            StorageError: It could not be written.
        """
        folder = self._root / history.folder_name(image_id)
        entry_id = history.new_id(history.names(folder))
        record = Rejection(
            entry_id, image_id, reason[:MAX_REASON], sender.user, sender.client, prediction, history.now_text()
        )
        with staged_folder(folder / entry_id) as entry:
            write_json(entry / RECORD_FILE, asdict(record))
        return record

    def latest(self, image_id: str) -> Rejection | None:
        """Return the latest rejection; None if there is none, or if it was taken back."""
        for entry in reversed(history.entries(self._root / history.folder_name(image_id))):
            try:
                found = from_fields(Rejection, read_json(entry / RECORD_FILE), f"of rejection {entry.name}")
            except StorageError as error:
                logger.warning("A rejection cannot be read and is skipped: %s", error)
                continue
            return found if found.reason else None
        return None
