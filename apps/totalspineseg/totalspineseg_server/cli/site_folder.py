"""Find the site that a command learns from: a folder of studies, or the work folder of a server."""

from pathlib import Path

from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.corrections.ids import HISTORY_DIR, PACS_DIR, STUDIES_DIR
from totalspineseg_server.corrections.image_records import images_folder
from totalspineseg_server.pacs.found_series import StoredSeries
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.training.site import Site, folder_site


def has_corrections(folder: Path) -> bool:
    """Return whether a server has stored corrections in this folder."""
    return (folder / HISTORY_DIR).is_dir() or _is_work_folder(folder)


def site_of(folder: Path, models: ModelStore) -> Site:
    """Return the site of a folder.

    Args:
        folder: The folder that ``serve`` uses: the studies, or ``--work``. For a PACS, only series that were fetched
            once are there.
        models: The versions in use.
    """
    if not _is_work_folder(folder):
        return folder_site(folder, models)
    if (images := images_folder(folder / STUDIES_DIR)) is not None:
        return folder_site(images, models, work=folder)
    series = StoredSeries(folder)
    return Site(folder, models, CorrectionStore(folder), series.image_file, series.subject)


def _is_work_folder(folder: Path) -> bool:
    known = (folder / PACS_DIR).is_dir() or images_folder(folder / STUDIES_DIR) is not None
    return known and not (folder / HISTORY_DIR).is_dir()
