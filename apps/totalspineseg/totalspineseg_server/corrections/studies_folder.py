"""Use a folder as the studies: image files directly in it or in a BIDS tree, and folders of DICOM series.

No file is ever overwritten.
"""

import logging
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final

from monailabel.interfaces.exception import ImageNotFoundException

from totalspineseg_server.corrections import answers
from totalspineseg_server.corrections.correction_store import Correction, CorrectionStore
from totalspineseg_server.corrections.datastore import SpineDatastore
from totalspineseg_server.corrections.folder_contents import (
    VOLUMES_DIR,
    DicomFolder,
    DicomFolders,
    image_in_studies,
    not_offered,
    studies_files,
)
from totalspineseg_server.corrections.ids import (
    HISTORY_DIR,
    OFFERED_ENDINGS,
    by_image,
    file_stem,
    is_usable_id,
    same_examination,
    split_name,
)
from totalspineseg_server.corrections.image_records import IMAGES_FILE, PATIENT, anonymous, images_folder
from totalspineseg_server.corrections.label_files import remove_file
from totalspineseg_server.errors import ImageError, StorageError, UnknownImageError
from totalspineseg_server.files import (
    PARTIAL_PREFIX,
    copy_file,
    sha256_of,
    storage_errors,
    sync_folder,
    write_json,
)
from totalspineseg_server.geometry import Volume

logger = logging.getLogger(__name__)

NAMES_IN_LOG: Final = 5
LISTED_SECONDS: Final = 1.0
"""A list of images younger than this is used again, so that many requests at once list the folder only once."""
LISTED_TIMES: Final = 10.0
"""A list of images is used again for this many times the time that it took to make, so that a slow disk is not listed
all the time.
"""
QUICK_SECONDS: Final = 0.25
"""A folder that takes longer is listed in the background; until then, requests get the previous list."""


class StudiesDatastore(SpineDatastore):
    """A folder of images.

    Of two files with one id, the one offered before is used, since labels are drawn on it, else the one whose ending is
    first in ``OFFERED_ENDINGS``.

    Args:
        path: Folder of the displayed labels; it is made if it is missing.
        images: Folder of the images, which is only read unless somebody uploads one; empty for the same folder.
        auto_reload: Whether added and removed files are noticed without ``refresh``.
        read_only: Whether nothing is written when the studies are opened.
        corrections: See ``SpineDatastore``.
    """

    def __init__(
        self,
        path: str,
        *,
        images: str = "",
        auto_reload: bool = True,
        read_only: bool = False,
        corrections: CorrectionStore | None = None,
    ) -> None:
        folder, own = Path(path), Path(path) if images else Path(path) / HISTORY_DIR
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder, Path(images or path), own, corrections)
        self._images = Path(images or path)
        self._is_separate = bool(images)
        self._follows = auto_reload
        self._listing = threading.Lock()
        self._files: Mapping[str, str] = {}
        self._series: Mapping[str, DicomFolder] = {}
        self._dicom = DicomFolders(self._images, self._labels.folder, own / VOLUMES_DIR)
        self._same_id: Mapping[str, str] = {}
        self._names: frozenset[str] = frozenset()
        self._listed_at, self._listing_seconds = 0.0, 0.0
        self._not_offered: Mapping[str, str] = {}
        self._left_out: Mapping[str, str] = {}
        self._foreign: Mapping[str, str] = {}
        if images and not read_only and images_folder(folder) != self._images:
            try:
                write_json(folder / IMAGES_FILE, {"images_dir": images})
            except StorageError as error:
                logger.warning("Commands that train do not find the images of this work folder: %s", error)
        self.refresh()

    # Images.

    def list_images(self) -> list[str]:
        """Return the ids of the images."""
        return sorted((*self._offered(), *self._series))

    def image_file(self, image_id: str) -> Path | None:
        """Return the file of an image, converted if need be, or None."""
        file, series = self.present_file(image_id), self._series.get(image_id)
        if file is None and series is not None:
            try:
                file = self._dicom.converted(image_id, series)
            except ImageError:
                # It is no longer offered.
                self._list()
                raise
            self._record_patient(image_id, series)
        return file.resolve() if file is not None and file.exists() else None

    def present_file(self, image_id: str) -> Path | None:
        """Return the file of an image, or None, also for a series that has to be converted first."""
        name = self._files.get(image_id)
        # A file that is still there is still the one that is offered, so the folder is not listed again for it.
        if name is None or (self._is_list_old() and not (self._images / name).is_file()):
            name = self._offered().get(image_id)
        if (series := self._series.get(image_id)) is not None:
            return self._dicom.volume(image_id, series)
        return None if name is None else self._images / name

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return the information about an image, also of a series that has to be converted first."""
        info = super().get_image_info(image_id)
        return self.records.of(image_id) if not info and image_id in self._series else info

    def fingerprint(self, image_id: str) -> str:
        """Return the size and time of an image's file, which change whenever its content may have changed; "" if there
        is no such image."""
        if (series := self._series.get(image_id)) is not None:
            return series.fingerprint
        file = self.present_file(image_id)
        try:
            stat = None if file is None else file.stat()
        except OSError:
            return ""
        return "" if stat is None else f"{stat.st_size}-{stat.st_mtime_ns}"

    def siblings(self, image_id: str) -> tuple[str, ...]:
        """Return the images of the same examination, whose coordinates can be compared with those of this image."""
        others = [other for other in self.list_images() if other != image_id]
        if (series := self._series.get(image_id)) is not None:
            known = ((other, self._series.get(other)) for other in others)
            return tuple(
                other
                for other, one in known
                if one is not None and one.study == series.study and self.same_space(image_id, other)
            )
        return tuple(other for other in others if same_examination(image_id, other))

    def series_folder(self, image_id: str) -> Path | None:
        """Return the folder of an image's DICOM files; None for a file."""
        series = self._series.get(image_id)
        return None if series is None else series.path

    def study_of(self, image_id: str) -> str:
        """Return "": an image of a folder has no study in a PACS."""
        return ""

    def same_space(self, one: str, other: str) -> bool:
        """Return whether the coordinates of two images can be compared, as far as is known."""
        known = (self._series.get(image_id) for image_id in (one, other))
        return len({series.frame for series in known if series is not None} - {""}) < 2

    def subject(self, image_id: str) -> str:
        """Return an anonymous id of an image's patient; "" if nobody said who it is. See the base class."""
        if noted := self.records.read(image_id).get(PATIENT):
            return str(noted)
        series = self._series.get(image_id)
        return "" if series is None or not series.patient else anonymous(series.patient)

    def show(self, correction: Correction, codes: Volume, more: Mapping[str, Any] | None = None) -> None:
        """Show an accepted correction under its tag; see the base class."""
        if self.image_file(correction.image) is None:
            raise KeyError(correction.image)
        self._labels.show(correction, codes, more)

    def send_waiting(self) -> None:
        """Do nothing: no label of a folder waits to be sent."""

    def is_unsent(self, image_id: str, tag: str) -> bool:
        """Return False: no label of a folder waits to be sent."""
        return False

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Add an image.

        Args:
            image_id: Its id; empty for the file's name.
            image_filename: NIfTI or NRRD file. Copied.
            image_info: Information about it.

        Returns:
            The id.

        Raises:
            ValueError: The id is missing or not readable, or the ending is not that of an image.
            FileExistsError: Another image has this id.
            StorageError: It could not be written, or the image with this id is out of reach.
        """
        source = Path(image_filename)
        own, ending = split_name(source.name)
        image_id = image_id or own
        if not is_usable_id(image_id):
            raise ValueError(f"expected a short image id without control characters, got {image_id[:80]!r}")
        if ending.lower() not in OFFERED_ENDINGS:
            raise ValueError(answers.not_offered(ending))
        is_known, there = image_id in self._files or image_id in self._series, self._file_now(image_id)
        if there is None and is_known and self._is_away():
            raise StorageError(answers.out_of_reach(image_id))
        # Work that takes seconds for a large image is done while others may still change the studies.
        if there is not None and sha256_of(there) != sha256_of(source):
            raise FileExistsError(answers.same_name(image_id))
        with _copied(source, self._images) if there is None else nullcontext() as copy, self._labels.turn():
            file = self._file_now(image_id)
            if file == there:
                if copy is not None:
                    file = self._images / f"{file_stem(image_id)}{ending}"
                    with storage_errors(file):
                        copy.replace(file)
                        sync_folder(self._images)
                if copy is not None or not is_known:
                    self.records.write(image_id, {**image_info, "ts": int(time.time())})
                    self._list()
                return image_id
        # Somebody else added or removed it in the meantime.
        return self.add_image(image_id, image_filename, image_info)

    def remove_image(self, image_id: str) -> None:
        """Remove an image from the studies, with the labels shown for it; the history keeps all submissions.

        If the image is a link, only the link is removed.

        Raises:
            ImageNotFoundException: There is no such image.
            StorageError: A file could not be changed.
        """
        with self._labels.turn():
            if image_id in self._series:
                raise ImageError(answers.folder_of_dicom(image_id))
            file = self.present_file(image_id)
            if file is None:
                raise ImageNotFoundException(str(UnknownImageError(image_id)))
            # Remove the image first: if it cannot be removed, its labels stay.
            remove_file(file)
            self._labels.remove(image_id, self._labels.tags())
            self.records.remove(image_id)
            self._list()

    def status(self) -> dict[str, Any]:
        """Return how many images and labels there are.

        ``not_offered`` maps a file or folder to the reason why it is not offered, a sentence without its subject.
        """
        self._offered()
        same_names = _same_names(self._same_id)
        left = {**self._not_offered, **self._left_out, **self._foreign_labels(), **same_names}
        return {**super().status(), "not_offered": left}

    def refresh(self) -> None:
        """List the images, and find files that are not offered."""
        self._list()
        self._report_not_offered()

    # The list.

    def _is_list_old(self) -> bool:
        age = time.monotonic() - self._listed_at
        return self._follows and age > max(LISTED_SECONDS, LISTED_TIMES * self._listing_seconds)

    def _offered(self) -> Mapping[str, str]:
        """Return image id -> its file's name, listed a moment ago."""
        # Requests that arrive while somebody lists the folder get the previous list.
        if self._is_list_old() and self._listing.acquire(blocking=False):
            if self._listing_seconds < QUICK_SECONDS:
                self._list_again()
            else:
                threading.Thread(target=self._list_again, name="studies-list", daemon=True).start()
        return self._files

    def _list_again(self) -> None:
        """List the images, and look for files that are not offered if anything was added or removed. Release
        ``_listing``.
        """
        names = self._names
        try:
            self._list_now()
        finally:
            self._listing.release()
        if self._names != names:
            threading.Thread(target=self._report_not_offered, name="studies-look", daemon=True).start()

    def _list(self) -> None:
        with self._listing:
            self._list_now()

    def _list_now(self) -> None:
        begun = time.monotonic()
        try:
            names, files = frozenset(file.name for file in self._images.iterdir()), studies_files(self._images)
        except OSError as error:
            logger.warning("The folder of the images cannot be read at the moment: %s", error)
        else:
            series, left_out = self._dicom.offered()
            if (self._files or self._series) and self._is_separate and not (files or series):
                logger.warning(
                    "There are no images in %s now. Their labels are kept until the images return.", self._images
                )
            else:
                self._choose(by_image(files))
                self._series = {image_id: one for image_id, one in series.items() if image_id not in self._files}
            before, self._left_out = self._left_out, left_out
            _log_new(before, self._left_out)
            self._names = names | series.keys()
        self._listed_at, self._listing_seconds = begun, time.monotonic() - begun

    def _choose(self, candidates: Mapping[str, list[str]]) -> None:
        """Set which file of each image is offered, and report the others once."""
        before = self._same_id
        files: dict[str, str] = {}
        same_id: dict[str, str] = {}
        for image_id, names in candidates.items():
            files[image_id] = names[0]
            if len(names) > 1:
                known = (self._files.get(image_id), self.records.of(image_id).get("name"))
                files[image_id] = next((name for name in known if name in names), names[0])
                same_id |= {name: files[image_id] for name in names if name != files[image_id]}
        self._files, self._same_id = files, same_id
        _log_new(_same_names(before), _same_names(same_id))

    def _file_now(self, image_id: str) -> Path | None:
        """Return the file of an image, even if it was copied just now; None if there is none, even if it is listed."""
        if image_id in self._series:
            return self.image_file(image_id)
        name = self._files.get(image_id)
        if name is not None and (self._images / name).is_file():
            return self._images / name
        return image_in_studies(self._images, image_id)

    def _is_away(self) -> bool:
        """Return whether a separate folder of images is empty although it had images, as when an archive is not
        mounted.
        """
        return self._is_separate and not (studies_files(self._images) or self._dicom.series())

    def _record_patient(self, image_id: str, series: DicomFolder) -> None:
        """Record the patient of a converted series, for trainings without this server."""
        if series.patient and PATIENT not in self.records.of(image_id):
            with suppress(StorageError), self._labels.turn():
                self.records.add(image_id, {PATIENT: anonymous(series.patient)})

    # What is not offered.

    def _report_not_offered(self) -> None:
        """Find the other contents of the folder, and log once for each why it is not offered.

        No lock is held while folders are searched, which may take long.
        """
        try:
            series = (one.path.relative_to(self._images).as_posix() for one in self._series.values())
            offered, labels = frozenset((*self._files.values(), *series)), self._labels.folder
            found = not_offered(self._images, labels=labels, offered=offered) if self._images.is_dir() else {}
        except OSError as error:
            logger.warning("The studies folder could not be read: %s", error)
            return
        # What is known of a series says more than the sentence about all of a folder.
        found = {name: why for name, why in found.items() if not any(way.startswith(name) for way in self._left_out)}
        before, self._not_offered = self._not_offered, found
        _log_new(before, found)
        self._foreign_labels()
        self._record_choices()

    def _record_choices(self) -> None:
        """Record which of two files with one id is offered, so that it is the same one after the next start."""
        for chosen in set(self._same_id.values()):
            image_id = split_name(Path(chosen).name)[0]
            if self.records.of(image_id).get("name") != chosen:
                with suppress(StorageError), self._labels.turn():
                    self.records.add(image_id, {"name": chosen})

    def _foreign_labels(self) -> dict[str, str]:
        """Return the label files that this server did not write, whose values have no known names."""
        found, folder = {}, self._labels.folder.parent
        for tag, listed in self._labels.names().items():
            for image_id, names in listed.items():
                is_image = image_id in self._files or image_id in self._series
                label = self._labels.of(image_id, {tag: listed})[tag] if is_image else None
                for name in names:
                    file = self._labels.folder / tag / name
                    if label is None:
                        found[file.relative_to(folder).as_posix()] = answers.WITHOUT_IMAGE
                    elif label.file == file and not label.is_own:
                        found[file.relative_to(folder).as_posix()] = answers.FOREIGN
        before, self._foreign = self._foreign, found
        _log_new(before, found)
        return found


def _same_names(same_id: Mapping[str, str]) -> dict[str, str]:
    """Return file -> the reason why it is not offered, from the offered file of the same id."""
    return {name: answers.name_taken(other) for name, other in same_id.items()}


def _log_new(before: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Log the files that are newly not offered, one line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in found.items():
        if before.get(name) != reason:
            by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        listed = ", ".join(map(repr, names[:NAMES_IN_LOG])) + (" and more" if len(names) > NAMES_IN_LOG else "")
        logger.warning("Not offered: %s, which %s.", listed, reason)


@contextmanager
def _copied(source: Path, folder: Path) -> Iterator[Path]:
    """Copy a file into a folder under a name that no image has; at the end, remove the copy if it is still there.

    Raises:
        StorageError: It could not be written.
    """
    copy = folder / f"{PARTIAL_PREFIX}{secrets.token_hex(8)}"
    copy_file(source, copy)
    try:
        yield copy
    finally:
        copy.unlink(missing_ok=True)
