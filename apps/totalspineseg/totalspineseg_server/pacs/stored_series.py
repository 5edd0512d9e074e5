"""Read the work folder of a PACS without the PACS, for trainings without a server."""

from pathlib import Path

from totalspineseg_server.corrections.ids import PACS_DIR, is_plain_stem
from totalspineseg_server.corrections.image_records import IMAGES_DIR, ImageRecords, older_index
from totalspineseg_server.pacs.found_series import patient_of


class StoredSeries:
    """The series that were fetched once, by UID; nothing is written.

    Args:
        work: Folder of the history, as in ``serve --work``.
    """

    def __init__(self, work: Path) -> None:
        self._folder = work / PACS_DIR
        self._records = ImageRecords(self._folder / IMAGES_DIR, older_index(self._folder))

    def image_file(self, series: str) -> Path | None:
        """Return the volume of a series; None if it is not here."""
        is_known = is_plain_stem(series) and bool(self._records.of(series))
        file = self._folder / f"{series}.nii"
        return file if is_known and file.is_file() else None

    def subject(self, series: str) -> str:
        """Return an anonymous id of a series' patient, the same as the running server's."""
        return patient_of(series, self._records.of(series))
