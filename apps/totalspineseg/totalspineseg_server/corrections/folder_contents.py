"""Find what lies in a folder of studies: image files, BIDS trees, folders of DICOM series, and what is not offered.

A DICOM series is converted to a volume when somebody needs it. The volumes can be deleted; they are made again.
"""

import logging
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from totalspineseg_server.bids import ANATOMY_FOLDERS
from totalspineseg_server.corrections import answers
from totalspineseg_server.corrections.ids import (
    OFFERED_ENDINGS,
    bids_folder,
    file_stem,
    image_files,
    is_offered,
    is_plain_stem,
    is_usable_id,
)
from totalspineseg_server.corrections.image_records import Remembered
from totalspineseg_server.errors import ImageError
from totalspineseg_server.files import copy_file, storage_errors
from totalspineseg_server.io.file_content import missing_content, real_path
from totalspineseg_server.io.volumes import image_named, is_image_name, is_other_name, may_be_dicom, stem, write_volume
from totalspineseg_server.locks import NamedLocks

if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)

VOLUMES_DIR: Final = "volumes"
VOLUME_ENDING: Final = ".nii"
"""Ending of a volume. It is not compressed, because the same series must give the same bytes whenever it is converted.
"""
MAX_DEPTH: Final = 8
"""Largest depth of folders that are searched; exports have patient, study, series."""
MAX_FOLDERS: Final = 20_000
"""Largest number of folders that are searched, so that a folder with everything in it does not keep the server busy."""
LOOKED_AT: Final = 5
"""Number of files to open in a folder before it counts as one without DICOM."""
MAX_LOOKED_AT: Final = 2000
"""Largest number of entries of a folder that are examined."""


def studies_files(folder: Path) -> list[str]:
    """Return the image files of a studies folder: those directly in it, and those of a BIDS tree in their folders.

    Returns:
        Their paths below the folder, in the order of ``image_files``, those of a BIDS tree last.

    Raises:
        OSError: A folder cannot be read.
    """
    found = image_files(folder) if folder.is_dir() else []
    for place in sorted(path.relative_to(folder) for pattern in ANATOMY_FOLDERS for path in folder.glob(pattern)):
        # A file whose name does not say where it belongs would share its id with another one.
        found += [(place / name).as_posix() for name in image_files(folder / place) if bids_folder(name) == place]
    return found


def image_in_studies(folder: Path, image_id: str) -> Path | None:
    """Return the file of an image of a studies folder; None if there is none."""
    place = bids_folder(image_id)
    places = (folder,) if place is None else (folder, folder / place)
    return next(filter(None, (image_named(each, file_stem(image_id)) for each in places)), None)


@dataclass(frozen=True)
class DicomFolder:
    """A folder with one series.

    Attributes:
        path: The folder.
        study: UID of the study.
        frame: UID of the frame of reference; "" for none.
        patient: The patient's id, which must not be shown.
        fingerprint: Changes when files are added, removed, or change their size.
    """

    path: Path
    study: str
    frame: str
    patient: str
    fingerprint: str


@dataclass(frozen=True)
class _Found:
    """The series in a folder, or the reason why it is not offered.

    Attributes:
        image_id: The id of its series.
        series: Its series; None if it is not offered.
        reason: Why it is not offered; "" if nobody expects it to be: no DICOM, another modality, a localizer.
    """

    image_id: str = ""
    series: DicomFolder | None = None
    reason: str = ""


class DicomFolders:
    """The series below a folder of studies.

    Args:
        studies: The folder.
        labels: The server's own folder of labels, which is skipped.
        volumes: Folder of the converted volumes; it is made when the first one is written.
    """

    def __init__(self, studies: Path, labels: Path, volumes: Path) -> None:
        self._studies = studies
        self._skipped = real_path(labels)
        self._volumes = volumes
        self._converting = NamedLocks()
        self._names: Remembered[tuple[tuple[str, ...], tuple[str, ...]]] = Remembered()
        self._found: Remembered[_Found] = Remembered()
        self._refused: dict[str, tuple[str, str]] = {}
        self._is_limited = False

    def series(self) -> dict[str, DicomFolder]:
        """Return image id -> its folder.

        An id is the path of the folder with the number and the description of the series: ``P01/s3 5 t2_tse_sag``.
        """
        return self._listed()[0]

    def offered(self) -> tuple[dict[str, DicomFolder], dict[str, str]]:
        """Return image id -> its folder without those that turned out not to be volumes, and the folders with an MR
        series that are left out: path below the studies, with a "/" behind it -> the reason."""
        listed, left_out = self._listed()
        refused = {image_id: self._refusal(image_id, one) for image_id, one in listed.items()}
        left_out |= {self._way(listed[image_id].path): reason for image_id, reason in refused.items() if reason}
        return {image_id: one for image_id, one in listed.items() if not refused[image_id]}, left_out

    def _listed(self) -> tuple[dict[str, DicomFolder], dict[str, str]]:
        """Return the same as ``offered`` by the headers alone."""
        listed, left_out = {}, {}
        for folder, names in self._folders():
            found = self._series_in(folder, names)
            if found.series is not None:
                listed[found.image_id] = found.series
            elif found.reason:
                left_out[self._way(folder)] = found.reason
        return listed, left_out

    def _refusal(self, image_id: str, series: DicomFolder) -> str:
        fingerprint, reason = self._refused.get(image_id, ("", ""))
        return reason if fingerprint == series.fingerprint else ""

    def _way(self, folder: Path) -> str:
        return f"{folder.relative_to(self._studies).as_posix()}/"

    def volume(self, image_id: str, series: DicomFolder) -> Path | None:
        """Return the volume of a series if it was converted since the series changed."""
        file = self._volume(image_id)
        try:
            # The volume has the time of the folder that it was made from.
            is_current = file.stat().st_mtime_ns == series.path.stat().st_mtime_ns
        except OSError:
            return None
        return file if is_current else None

    def converted(self, image_id: str, series: DicomFolder) -> Path:
        """Return the volume of a series, and convert it now if necessary.

        Raises:
            ImageError: The series is not a volume.
            StorageError: The volume could not be written.
        """
        # Import here, because importing pydicom takes longer than listing a folder without DICOM.
        from totalspineseg_server.io.dicom.series import read_series

        file = self._volume(image_id)
        with self._converting.of(image_id):
            if self.volume(image_id, series) is not None:
                return file
            try:
                folder_ns = series.path.stat().st_mtime_ns
                image = read_series(series.path)
            except ImageError as error:
                self._refused[image_id] = series.fingerprint, answers.not_a_volume(error)
                raise
            with storage_errors(file):
                file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="totalspineseg-series-") as name:
                fresh = Path(name) / file.name
                write_volume(fresh, image.data, image.grid)
                copy_file(fresh, file)
                os.utime(file, ns=(folder_ns, folder_ns))
        for warning in image.warnings:
            logger.warning("image %r: %s", image_id, warning)
        return file

    def _volume(self, image_id: str) -> Path:
        return volume_of(self._volumes, image_id)

    def _folders(self) -> Iterator[tuple[Path, tuple[str, ...]]]:
        """Yield the folders below the studies, each with the names of its files that are not images."""
        waiting, visited = [(self._studies, 0)], {self._skipped}
        while waiting:
            folder, depth = waiting.pop()
            # A link may lead back to a folder above it.
            if real_path(folder) in visited:
                continue
            visited.add(real_path(folder))
            if len(visited) > MAX_FOLDERS:
                if not self._is_limited:
                    logger.warning("Only the first %d folders are searched for DICOM series.", MAX_FOLDERS)
                self._is_limited = True
                return
            try:
                below, files = self._names.value(folder, [folder], partial(_names_in, folder))
            except OSError as error:
                logger.warning("A folder below the studies cannot be read: %s", error.strerror)
                continue
            if depth:
                yield folder, files
            if depth < MAX_DEPTH:
                waiting += [(folder / name, depth + 1) for name in below]

    def _series_in(self, folder: Path, names: tuple[str, ...]) -> _Found:
        """Return what is in a folder, by the names of its files that may be DICOM."""
        return self._found.value(folder, [folder], lambda: self._read(folder, names)) if names else _Found()

    def _read(self, folder: Path, names: tuple[str, ...]) -> _Found:
        from totalspineseg_server.io.dicom.headers import MODALITY, is_localizer, may_be_volume

        try:
            # Other programs leave files of their own beside the slices, such as Thumbs.db.
            first, last = (_first_header(folder, order) for order in (names, names[::-1]))
            sizes = [(name, (folder / name).stat().st_size) for name in names]
        except ImageError as error:
            return _Found(reason=answers.not_a_volume(error))
        except OSError as error:
            return _Found(reason=answers.no_access(error.strerror))
        if first is None or last is None:
            return _Found()
        number, description = (str(first.get(key) or "") for key in ("SeriesNumber", "SeriesDescription"))
        is_other = str(first.get("Modality") or MODALITY) != MODALITY
        if is_other or is_localizer(description) or not may_be_volume(len(sizes)):
            return _Found()
        if first.get("SeriesInstanceUID") != last.get("SeriesInstanceUID"):
            return _Found(reason=answers.SEVERAL_SERIES)
        words = (folder.relative_to(self._studies).as_posix(), number, description.strip())
        image_id = " ".join(filter(None, words))
        if not is_usable_id(image_id):
            return _Found(reason=answers.UNUSABLE_NAME)
        study, frame = (str(first.get(key) or "") for key in ("StudyInstanceUID", "FrameOfReferenceUID"))
        fingerprint = f"{len(sizes)} files, {sum(size for _, size in sizes)} bytes"
        patient = str(first.get("PatientID") or "")
        return _Found(image_id, DicomFolder(folder, study, frame, patient, fingerprint))


def _first_header(folder: Path, names: Iterable[str]) -> "Dataset | None":
    """Return the header of the first DICOM file among the first ``LOOKED_AT`` names; None if there is none.

    Raises:
        ImageError: A DICOM file is damaged or too large.
        OSError: A file cannot be read.
    """
    from totalspineseg_server.io.dicom.headers import read_header

    return next(filter(None, (read_header(folder / name) for name in islice(names, LOOKED_AT))), None)


def volume_of(volumes: Path, image_id: str) -> Path:
    """Return the path of a series' volume, which may not exist yet."""
    return volumes / f"{file_stem(image_id)}{VOLUME_ENDING}"


def _names_in(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the folders in a folder, and of its files that may be DICOM, in alphabetical order."""
    below, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                below.append(entry.name)
            elif may_be_dicom(Path(entry.name)) and entry.is_file():
                files.append(entry.name)
    return tuple(sorted(below)), tuple(sorted(files))


def not_offered(folder: Path, *, labels: Path, offered: Collection[str] = ()) -> dict[str, str]:
    """Return the contents of a studies folder that are not offered.

    Args:
        folder: The folder. Hidden entries are skipped, and files that look like neither an image nor DICOM.
        labels: The server's own folder of labels, which is skipped.
        offered: Paths below the folder of the images and series that are offered. Folders with some of these are
            skipped.

    Returns:
        Name (of a folder, with a "/" behind it) -> why it is not offered, and what to do.
    """
    found, with_images = {}, {way.partition("/")[0] for way in offered}
    for path in sorted(folder.iterdir()):
        is_folder = path.is_dir()
        has_images = is_folder and path.name in with_images
        if path.name.startswith(".") or has_images or real_path(path) == real_path(labels):
            continue
        try:
            reason = _reason_of_folder(path) if is_folder else _reason_of_file(path)
        except OSError as error:
            reason = answers.no_access(error.strerror)
        if reason:
            found[f"{path.name}/" if is_folder else path.name] = reason
    return found


def _reason_of_file(path: Path) -> str:
    if is_offered(path):
        return ""
    if reason := missing_content(path) if is_image_name(path) or path.is_symlink() else "":
        return reason
    if path.name.lower().endswith(OFFERED_ENDINGS):
        if not is_plain_stem(stem(path)):
            return answers.UNUSABLE_NAME
        # Opening it raises the reason why it cannot be read.
        path.open("rb").close()
        return ""
    if is_image_name(path) or is_other_name(path):
        return answers.other_format(OFFERED_ENDINGS)
    return answers.DICOM_FILE if _is_dicom(path) else ""


def _reason_of_folder(folder: Path) -> str:
    """Return why a folder is not offered, by the first image or DICOM file below it."""
    with os.scandir(folder):
        pass  # Raise what ``os.walk`` would ignore.
    for path in islice(_below(folder), MAX_LOOKED_AT):
        way = path.relative_to(folder.parent).as_posix()
        if is_image_name(path) and (missing := missing_content(path)):
            return answers.holds_missing(way, missing)
        if is_image_name(path) or is_other_name(path):
            return answers.holds_images(way)
        if _is_dicom(path):
            return answers.holds_dicom(way)
    return ""


def _below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, those of a folder before those of its subfolders."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(place) / name


def _is_dicom(path: Path) -> bool:
    # Import here, because importing pydicom takes longer than listing a folder without DICOM.
    from totalspineseg_server.io.dicom.headers import is_dicom

    return path.is_file() and is_dicom(path)
