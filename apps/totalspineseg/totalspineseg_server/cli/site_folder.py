"""Find the site that a command learns from: a folder of studies, or the work folder of a server."""

from pathlib import Path

from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.corrections.history import HISTORY_DIR, INDEX_FILE, PACS_DIR, STUDIES_DIR
from totalspineseg_server.files import read_json
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.trainers.site import Site, folder_site


def has_corrections(folder: Path) -> bool:
    """Return whether a server has stored corrections in this folder."""
    return (folder / HISTORY_DIR).is_dir() or _is_work_folder(folder)


def site_of(folder: Path, models: ModelStore) -> Site:
    """Return the site of a folder.

    Args:
        folder: The folder that ``serve`` uses: the studies, or ``--work``. For a PACS, only series that were fetched
            once are there.
        models: The versions in use.

    Raises:
        StorageError: The index in the work folder is damaged.
    """
    if not _is_work_folder(folder):
        return folder_site(folder, models)
    index = folder / STUDIES_DIR / INDEX_FILE
    if index.is_file():
        return folder_site(Path(read_json(index)["images_dir"]), models, work=folder)
    # Import this here, because MONAI Label's datastore is slow to import.
    from totalspineseg_server.pacs.stored_series import StoredSeries

    series = StoredSeries(folder)
    return Site(folder, models, CorrectionStore(folder), series.image_file, series.subject)


def _is_work_folder(folder: Path) -> bool:
    known = (folder / PACS_DIR).is_dir() or (folder / STUDIES_DIR / INDEX_FILE).is_file()
    return known and not (folder / HISTORY_DIR).is_dir()
