"""Read the work folder of a PACS without the PACS, for trainings without a server."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastoreModel

from totalspineseg_server.corrections.history import INDEX_FILE, PACS_DIR
from totalspineseg_server.corrections.image_ids import is_plain_stem
from totalspineseg_server.pacs.found_series import patient_of


class StoredSeries:
    """The series that were fetched once, by UID; nothing is written.

    Args:
        work: Folder of the history, as in ``serve --work``.
    """

    def __init__(self, work: Path) -> None:
        self._folder = work / PACS_DIR
        index = self._folder / INDEX_FILE
        self._objects: Mapping[str, Any] = {}
        if index.is_file():
            self._objects = LocalDatastoreModel.model_validate_json(index.read_text(encoding="utf-8")).objects

    def image_file(self, series: str) -> Path | None:
        """Return the volume of a series; None if it is not here."""
        entry = self._objects.get(series)
        file = self._folder / f"{series}{entry.image.ext}" if entry and is_plain_stem(series) else None
        return file if file and file.is_file() else None

    def subject(self, series: str) -> str:
        """Return an anonymous id of a series' patient, the same as that of a running server."""
        entry = self._objects.get(series)
        return patient_of(series, entry.image.info if entry else {})
