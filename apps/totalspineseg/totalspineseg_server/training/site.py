"""Describe where the studies, corrections and models of a training are, and find them in the folder of a server."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from totalspineseg_server.bids import subject_of
from totalspineseg_server.corrections.correction_store import Correction, CorrectionStore
from totalspineseg_server.corrections.folder_contents import VOLUMES_DIR, image_in_studies, volume_of
from totalspineseg_server.corrections.ids import HISTORY_DIR, PACS_DIR, STUDIES_DIR
from totalspineseg_server.corrections.image_records import (
    IMAGES_DIR,
    PATIENT,
    ImageRecords,
    images_folder,
    older_index,
)
from totalspineseg_server.errors import ImageError
from totalspineseg_server.files import sha256_of
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.training import training_messages


@dataclass(frozen=True)
class Site:
    """A studies folder and its models.

    Attributes:
        history: Folder of corrections, hold-out list and training runs.
        models: The model versions, and which are in use.
        corrections: Corrections of annotators.
        image_file: ``image_file(image_id)`` is the file or folder of an image, or None if it is missing.
        subject: ``subject(image_id)`` is the subject of an image. All images of a subject are used for training, or all
            are held out. It raises ``StorageError`` if the record that names the patient cannot be read.
    """

    history: Path
    models: ModelStore
    corrections: CorrectionStore
    image_file: Callable[[str], Path | None]
    subject: Callable[[str], str] = subject_of

    def labeled_image(self, correction: Correction) -> Path:
        """Return the file or folder of the image on which a correction was drawn.

        Raises:
            ImageError: It is gone, or was replaced since.
        """
        path = self.image_file(correction.image)
        if path is None:
            raise ImageError(training_messages.IMAGE_GONE.format(image=correction.image))
        if sha256_of(path) != correction.image_sha256:
            raise ImageError(training_messages.IMAGE_REPLACED.format(image=correction.image))
        return path

    @property
    def training_dir(self) -> Path:
        """The folder of the training runs; it may not exist yet."""
        return self.history / "training"

    @property
    def holdout_file(self) -> Path:
        """The file with the role of each subject: used for training, or held out."""
        return self.history / "holdout.json"


def folder_site(studies: Path, models: ModelStore, *, work: Path | None = None) -> Site:
    """Return the site of a plain studies folder, for programs that run without the server.

    Args:
        studies: Folder of images.
        models: The model versions.
        work: Folder that the server writes to; None for one inside the studies folder.
    """
    history = work or studies / HISTORY_DIR
    labels = studies if work is None else work / STUDIES_DIR
    own = history if work is None else labels
    records = ImageRecords(own / IMAGES_DIR, older_index(labels))

    def image_file(image_id: str) -> Path | None:
        converted = volume_of(own / VOLUMES_DIR, image_id)
        return image_in_studies(studies, image_id) or (converted if converted.is_file() else None)

    def subject(image_id: str) -> str:
        return str(records.read(image_id).get(PATIENT) or subject_of(image_id))

    return Site(history, models, CorrectionStore(history), image_file, subject)


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
    from totalspineseg_server.pacs.found_series import StoredSeries

    series = StoredSeries(folder)
    return Site(folder, models, CorrectionStore(folder), series.image_file, series.subject)


def _is_work_folder(folder: Path) -> bool:
    known = (folder / PACS_DIR).is_dir() or images_folder(folder / STUDIES_DIR) is not None
    return known and not (folder / HISTORY_DIR).is_dir()
