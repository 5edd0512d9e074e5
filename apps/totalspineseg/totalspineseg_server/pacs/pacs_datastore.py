"""Show the PACS to MONAI Label as a datastore: series are images, which are fetched into a folder when needed."""

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import requests
from dicomweb_client import DICOMwebClient

from totalspineseg_server.corrections.correction_store import FINAL_TAG, Correction, CorrectionStore
from totalspineseg_server.corrections.datastore import SpineDatastore
from totalspineseg_server.corrections.folder_contents import VOLUME_ENDING
from totalspineseg_server.corrections.label_files import RENUMBERED, correction_file, info_of
from totalspineseg_server.errors import ImageError, MemoryShortageError, StorageError, TotalSpineSegError
from totalspineseg_server.files import copy_file, move_folder, storage_errors
from totalspineseg_server.geometry import Volume
from totalspineseg_server.io.dicom.headers import read_header
from totalspineseg_server.io.dicom.series import read_series
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.locks import NamedLocks
from totalspineseg_server.pacs import pacs_messages
from totalspineseg_server.pacs.address import is_uid
from totalspineseg_server.pacs.cache import MAX_GB, excess, is_in_use, mark_used, measure
from totalspineseg_server.pacs.found_series import Series, downloaded, patient_of
from totalspineseg_server.pacs.listing import Listing

logger = logging.getLogger(__name__)

SERIES_DIR: Final = "dicom"
"""Folder of the original DICOM files of each series."""
COUNTED: Final = "instances"
"""Field of a fetched image with the number of instances that the PACS reported at that time."""
UNSENT: Final = "unsent"
"""Field of a finished label that says whether it still has to be sent to the PACS."""

PASSING: Final = (StorageError, MemoryShortageError)
"""Faults of this server that may be gone at the next attempt."""

Publisher = Callable[[str, Path, Mapping[str, Any]], None]
"""``publish(series, file, info)``: store a finished label (wire ids) in the PACS."""


class PacsDatastore(SpineDatastore):
    """A DICOMweb server as a datastore.

    MONAI Label's own class is not used: it lists CT, keeps its lists for two hours, uses the last segmentation in
    whatever order the server answers, and names segments by their number.

    Args:
        client: The PACS.
        folder: Folder for series and labels.
        filters: Filter for series that are images, such as ``{"Modality": "MR"}``.
        publisher: Stores a finished label that did not come from the PACS.
        is_needed: Whether a fetched series must stay, however much disk space it takes.
        cache_gb: Disk space for all fetched series, GB.
        corrections: See ``SpineDatastore``.

    Attributes:
        submitting: Locks for segmentations that become submissions, by instance.
    """

    def __init__(
        self,
        client: DICOMwebClient,
        folder: Path,
        filters: Mapping[str, Any],
        *,
        publisher: Publisher,
        is_needed: Callable[[str], bool] = lambda series: False,
        cache_gb: float = MAX_GB,
        corrections: CorrectionStore | None = None,
    ) -> None:
        self._is_needed = is_needed
        self._max_bytes = cache_gb * 1e9
        self._client = client
        self._listing = Listing(client, filters)
        self._publisher = publisher
        self._fetching = NamedLocks()
        self.submitting = NamedLocks()
        self._sending = threading.Lock()
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder, folder, folder, corrections)

    def name(self) -> str:
        """Return the server's address."""
        address: str = self._client.base_url
        return address

    def series(self) -> Mapping[str, Series]:
        """Return the series that are offered as images, by UID: all but localizers and unreadable series."""
        return self._listing.offered()

    def offers(self, image_id: str) -> bool:
        """Return whether a series is offered as an image, even if it reached the PACS only a moment ago.

        Raises:
            requests.RequestException: The series is not here, and the PACS does not answer.
        """
        try:
            found = self._listing.find(image_id) if is_uid(image_id) else None
        except requests.RequestException:
            if self.present_file(image_id) is None:
                raise
            return True
        return found is not None and self._listing.is_offered(found)

    def study_of(self, image_id: str) -> str:
        """Return the UID of the study of a listed series; "" for other series."""
        found = self._listing.all().get(image_id)
        return "" if found is None else found.study

    def list_images(self) -> list[str]:
        """Return the ids of the images."""
        return list(self.series())

    def changed(self) -> None:
        """Read the list again next time, because something was stored in the PACS."""
        self._listing.changed()

    def image_file(self, image_id: str) -> Path | None:
        """Return the file of a series, which is fetched from the PACS if it is not here yet.

        Returns:
            A NIfTI file on the grid of the series; None if there is no such series.

        Raises:
            ImageError: The series is not a volume.
            StorageError: The file could not be written.
            requests.RequestException: The series is not here, and the PACS does not answer.
        """
        if file := self._local_file(image_id):
            return file
        found = self._listing.find(image_id) if is_uid(image_id) else None
        if found is None:
            return None
        with self._fetching.of(image_id):
            return self._local_file(image_id) or self._fetch(found)

    def subject(self, image_id: str) -> str:
        """Return an anonymous id of a series' patient, for every series that was needed once or is in the PACS."""
        info = self.records.of(image_id)
        if not info:
            # The series is not here (anymore), but its patient must not count as another one.
            with suppress(requests.RequestException):
                found = self._listing.all().get(image_id)
                info = dict(found.info) if found else {}
        return patient_of(image_id, info)

    def put_back(self, image_id: str) -> bool:
        """Store the finished label of an image in the PACS as well; if the PACS does not accept it now, it waits here.

        Returns:
            Whether the PACS has it.

        Raises:
            StorageError: This server could not write the label just now; it waits.
            MemoryShortageError: There was not enough memory just now; it waits.
            TotalSpineSegError: The label cannot be written as DICOM; it does not wait.
        """
        file, info = self.get_label_uri(image_id, FINAL_TAG), self.get_label_info(image_id, FINAL_TAG)
        unsent = True
        try:
            self._publisher(image_id, Path(file), info)
            unsent = False
        except requests.RequestException as error:
            logger.warning("The PACS does not accept the label of series %s yet: %s", image_id, type(error).__name__)
        except TotalSpineSegError as error:
            # A fault of the label itself will not go away.
            unsent = isinstance(error, PASSING)
            raise
        finally:
            self.update_label_info(image_id, FINAL_TAG, {UNSENT: unsent})
        return not unsent

    def waiting(self) -> tuple[str, ...]:
        """Return the images whose finished label still has to be sent to the PACS."""
        return tuple(uid for uid in sorted(self._labels.images()) if self.is_unsent(uid, FINAL_TAG))

    def is_unsent(self, image_id: str, tag: str) -> bool:
        """Return whether the label of an image under a tag still has to be sent to the PACS."""
        return bool(self.get_label_info(image_id, tag).get(UNSENT))

    def send_waiting(self) -> None:
        """Begin to send the waiting labels to the PACS in the background, unless that is under way."""
        if self._sending.acquire(blocking=False):
            threading.Thread(target=self._send_in_background, name="pacs-send", daemon=True).start()

    def _send_in_background(self) -> None:
        try:
            self.send_all()
        finally:
            self._sending.release()

    def send_all(self) -> None:
        """Send the waiting labels to the PACS, as long as it answers."""
        for series in self.waiting():
            try:
                if not self.put_back(series):
                    return
            except TotalSpineSegError as error:
                logger.warning("The label of series %s cannot be stored in the PACS: %s", series, error)
            except Exception:
                # A label that makes the server fail must not keep the others from the PACS.
                logger.exception("The label of series %s could not be stored in the PACS", series)

    def fingerprint(self, image_id: str) -> str:
        """Return a text that changes whenever a series may have changed. It is not fetched: the PACS counts its
        instances.

        Returns:
            "" if there is no such series, or if the PACS does not answer.
        """
        try:
            found = self._listing.all().get(image_id)
        except requests.RequestException:
            return ""
        return "" if found is None else f"{found.instances} instances"

    def siblings(self, image_id: str) -> tuple[str, ...]:
        """Return the series of the same study that are here and whose coordinates can be compared with those of this
        one."""
        known = self.series()
        study = known[image_id].study if image_id in known else None
        others = (uid for uid, other in known.items() if other.study == study and uid != image_id)
        return tuple(sorted(uid for uid in others if self._folder(uid).is_dir() and self.same_space(image_id, uid)))

    def same_space(self, one: str, other: str) -> bool:
        """Return whether the coordinates of two series that are here can be compared, judging by their headers.

        A patient who was repositioned within a study has another frame of reference.
        """
        frames = {self._frame_of_reference(image_id) for image_id in (one, other)} - {""}
        return len(frames) < 2

    def series_folder(self, image_id: str) -> Path:
        """Return the folder with the DICOM files of a series, which are fetched if they are not here yet.

        Raises:
            ImageError: There is no such series, or it is not a volume.
        """
        folder = self._folder(image_id)
        if self.image_file(image_id) is None:
            raise ImageError(pacs_messages.NO_SERIES.format(series=image_id))
        with self._fetching.of(image_id):
            if not folder.is_dir():
                found = self._listing.find(image_id)
                if found is None:
                    raise ImageError(pacs_messages.SERIES_GONE.format(series=image_id))
                with downloaded(self._client, found, folder.parent) as fresh:
                    move_folder(fresh, folder)
        return folder

    def present_file(self, image_id: str) -> Path | None:
        """Return the volume of a series that was fetched, whether or not it is complete by now."""
        # A volume without a record was left by a server that was killed.
        is_known = is_uid(image_id) and bool(self.records.of(image_id))
        return self._volume(image_id) if is_known and self._volume(image_id).is_file() else None

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return the information about a series."""
        found = self._listing.all().get(image_id)
        return {**super().get_image_info(image_id), **(found.info if found else {})}

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to the information about a series."""
        if self.image_file(image_id) is not None:
            super().update_image_info(image_id, info)

    def _image_entry(self, image_id: str, file: Path | None) -> dict[str, Any]:
        found = self._listing.all().get(image_id)
        entry = super()._image_entry(image_id, file)
        return {"ext": VOLUME_ENDING, "info": {**entry["info"], **(found.info if found else {})}}

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Refuse: images come from the PACS.

        Raises:
            ValueError: Always.
        """
        raise ValueError(pacs_messages.STORE_THERE)

    def remove_image(self, image_id: str) -> None:
        """Refuse: images come from the PACS.

        Raises:
            ImageError: Always.
        """
        raise ImageError(pacs_messages.REMOVE_THERE)

    def show(self, correction: Correction, codes: Volume, more: Mapping[str, Any] | None = None) -> None:
        """Show an accepted correction under its tag, and store a finished one in the PACS; see the base class."""
        with correction_file(codes) as file:
            self.save_label(correction.image, str(file), correction.displayed_tag, info_of(correction, more))

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Show a label under a tag (see the base class), and store a finished one in the PACS if it is not there."""
        if self.image_file(image_id) is None:
            raise KeyError(image_id)
        tag = str(getattr(label_tag, "value", label_tag))
        # The PACS has the label with the names as they were sent, but readers there must see the names that count.
        own = tag == FINAL_TAG and (not label_info.get("instance") or bool(label_info.get(RENUMBERED)))
        info = {UNSENT: own, **label_info}
        saved = super().save_label(image_id, label_filename, tag, info)
        if own:
            try:
                self.put_back(image_id)
            except PASSING as error:
                logger.warning("The label of series %s goes to the PACS later: %s", image_id, error)
        return saved

    def _local_file(self, image_id: str) -> Path | None:
        """Return the file of a series that is here completely, or None."""
        file = self.present_file(image_id)
        return file if file is not None and mark_used(file) and self._is_complete(image_id) else None

    def _is_complete(self, image_id: str) -> bool:
        """Return whether this server has the whole series; it may have been fetched while the PACS was still receiving
        it."""
        folder = self._folder(image_id)
        try:
            known = self._listing.now(image_id)
        except requests.RequestException:
            # A training uses what is here, whether or not the PACS answers now.
            return True
        if known is None or not folder.is_dir():
            return True
        # A PACS may count images that it does not send. Fetching again would change nothing, and lose the labels in
        # use.
        counted = int(self.records.of(image_id).get(COUNTED) or 0)
        return known.instances <= max(counted, sum(1 for _ in folder.iterdir()))

    def _folder(self, image_id: str) -> Path:
        return self._place / SERIES_DIR / image_id

    def _frame_of_reference(self, image_id: str) -> str:
        """Return the frame of reference of a series that is here; "" if it names none."""
        folder = self._folder(image_id)
        first = min(folder.iterdir(), default=None) if is_uid(image_id) and folder.is_dir() else None
        header = None if first is None else read_header(first)
        return "" if header is None else str(header.get("FrameOfReferenceUID") or "")

    def _fetch(self, series: Series) -> Path | None:
        """Download a series and store it as a volume; the old files stay until the new ones can be read."""
        if reason := self._listing.refusal(series):
            raise ImageError(reason)
        folder = self._folder(series.uid)
        try:
            with (
                downloaded(self._client, series, folder.parent) as fresh,
                tempfile.TemporaryDirectory(prefix="totalspineseg-series-") as name,
            ):
                volume = read_series(fresh)
                for warning in volume.warnings:
                    logger.warning("series %s: %s", series.uid, warning)
                file = Path(name) / f"{series.uid}{VOLUME_ENDING}"
                write_volume(file, volume.data, volume.grid)
                self._forget(series.uid)
                move_folder(fresh, folder)
                with self._labels.turn():
                    copy_file(file, self._volume(series.uid))
                    info = {**series.info, COUNTED: series.instances, "ts": int(time.time())}
                    self.records.write(series.uid, info)
        except ImageError as error:
            self._listing.refuse(series, str(error))
            raise
        try:
            self._make_room(series.uid)
        except (OSError, StorageError) as error:
            # The series is there; the next request will make room.
            logger.warning("No room could be made for fetched series: %s", error)
        return self._local_file(series.uid)

    def _make_room(self, fetched: str) -> None:
        """Remove the least recently used series while all together take too much, but not the one that was just
        fetched.
        """
        labeled = self._labels.images()
        volumes = [self._volume(path.name) for path in self._folder(fetched).parent.iterdir() if is_uid(path.name)]

        def stays(uid: str) -> bool:
            return uid == fetched or uid in labeled or is_in_use(self._volume(uid)) or self._is_needed(uid)

        for uid in excess(measure(volumes, self._folder(fetched).parent), self._max_bytes, stays):
            turn = self._fetching.of(uid)
            if not turn.acquire(blocking=False):
                continue
            try:
                self._remove_unused(uid)
            finally:
                turn.release()

    def _remove_unused(self, image_id: str) -> None:
        """Remove a fetched series that was not requested in the meantime."""
        with self._labels.turn():
            volume = self._volume(image_id)
            if not volume.is_file() or is_in_use(volume):
                return
            volume.unlink()
            shutil.rmtree(self._folder(image_id), ignore_errors=True)
            self.records.remove(image_id)
        logger.info("Series %s was removed to make room; it is fetched again when it is needed", image_id)

    def _volume(self, image_id: str) -> Path:
        return self._place / f"{image_id}{VOLUME_ENDING}"

    def _forget(self, image_id: str) -> None:
        """Remove an incomplete series and its labels in use; the history keeps all submissions."""
        with self._labels.turn():
            is_known = bool(self.records.of(image_id))
            # Remove also a volume without a record, as after a kill: it would not be replaced.
            self._volume(image_id).unlink(missing_ok=True)
            shutil.rmtree(self._folder(image_id), ignore_errors=True)
            if is_known:
                logger.warning("Series %s had more images than were fetched; it is fetched again", image_id)
                # They are on the old grid.
                self._labels.remove(image_id, self._labels.tags())
                self.records.remove(image_id)
