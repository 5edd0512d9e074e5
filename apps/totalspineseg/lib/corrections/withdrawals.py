"""Corrections that were withdrawn: they stay in the history, but do not count anymore.

``<history>/withdrawals/<image>/<id of the correction>/record.json`` has the person who withdrew it, and the time.
"""

from pathlib import Path

from lib.corrections import history
from lib.files import staged_folder, write_json

RECORD_FILE = "record.json"


class Withdrawals:
    """Withdrawals below a history folder; append-only."""

    def __init__(self, root: Path) -> None:
        self._root = root / "withdrawals"

    def add(self, image_id: str, correction_id: str, user: str) -> None:
        """Withdraw a correction.

        Args:
            image_id: Image it belongs to.
            correction_id: A correction that was not withdrawn before.
            user: Who withdraws it; "admin" if the server runs without authentication.

        Raises:
            StorageError: It could not be written; the correction counts as before.
        """
        record = {"image": image_id, "correction": correction_id, "user": user, "received": history.now_text()}
        with staged_folder(self._folder(image_id) / correction_id) as entry:
            write_json(entry / RECORD_FILE, record)

    def of_image(self, image_id: str) -> frozenset[str]:
        """Return the ids of the corrections of an image that were withdrawn."""
        return frozenset(history.names(self._folder(image_id)))

    def _folder(self, image_id: str) -> Path:
        return self._root / history.folder_name(image_id)
