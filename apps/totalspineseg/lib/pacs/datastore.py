"""The PACS as MONAI Label sees it: series are images, kept in a folder of this server once they were needed."""

import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import requests
from dicomweb_client import DICOMwebClient

from lib.corrections.datastore import StudiesDatastore
from lib.corrections.inbox import FINAL_TAG, RENUMBERED
from lib.dicom.headers import read_header
from lib.dicom.moments import now_utc
from lib.dicom.seg_object import SegReference
from lib.dicom.series import read_series
from lib.errors import ImageError, MemoryShortageError, StorageError, TotalSpineSegError
from lib.pacs.address import is_uid
from lib.pacs.cache import MAX_GB, excess, is_in_use, mark_used, measure
from lib.pacs.download import downloaded
from lib.pacs.listing import Listing
from lib.pacs.series import Segmentations, Series, patient_of
from lib.turns import Turns
from lib.volume_io import write_volume

logger = logging.getLogger(__name__)

SERIES_DIR: Final = "dicom"
"""Folder of the series as they came."""
COUNTED: Final = "instances"
"""What is known about a fetched image: how many instances the PACS said it had then."""
UNSENT: Final = "unsent"
"""What is known about a finished label: whether the PACS still has to get it."""

PASSING: Final = (StorageError, MemoryShortageError)
"""Faults of this server that a later try may not meet."""

Publisher = Callable[[str, Path, Mapping[str, Any]], None]
"""``publish(series, file, info)``: put a finished label (wire ids) into the PACS."""


class PacsDatastore(StudiesDatastore):
    """A DICOMweb server as a datastore.

    The host's own class lists CT, keeps its lists for two hours, takes the last segmentation in whatever order the
    server answers, and names segments by their ordinal.

    Args:
        client: The PACS.
        folder: Where series and labels are kept.
        filters: Which series are images, such as ``{"Modality": "MR"}``.
        publisher: Stores a finished label that did not come from the PACS.
        is_needed: Whether a fetched series must stay, whatever room it takes.
        cache_gb: Room for all fetched series, GB.
        read_only: Whether labels are refused.

    Attributes:
        segmentations: Those of the PACS.
        submitting: Turns at segmentations that become submissions, by instance.
    """

    looks_beyond = False

    def __init__(
        self,
        client: DICOMwebClient,
        folder: Path,
        filters: Mapping[str, Any],
        *,
        publisher: Publisher,
        is_needed: Callable[[str], bool] = lambda series: False,
        cache_gb: float = MAX_GB,
        read_only: bool = False,
    ) -> None:
        self._is_needed = is_needed
        self._max_bytes = cache_gb * 1e9
        self._client = client
        self._listing = Listing(client, filters)
        self._publisher = publisher
        self._fetching = Turns()
        self.submitting = Turns()
        self.segmentations = Segmentations(client)
        super().__init__(str(folder), auto_reload=False, read_only=read_only)

    def name(self) -> str:
        """The server's address."""
        address: str = self._client.base_url
        return address

    def series(self) -> Mapping[str, Series]:
        """The series that are offered as images, by UID: all but localizers and what could not be read."""
        return self._listing.offered()

    def offers(self, image_id: str) -> bool:
        """Whether a series is offered as an image, even one that came into the PACS a moment ago."""
        found = self._listing.find(image_id) if is_uid(image_id) else None
        return found is not None and self._listing.is_offered(found)

    def list_images(self) -> list[str]:
        """Ids of the images."""
        return list(self.series())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Images with a finished label."""
        with self._guard:
            finished = {uid for uid, entry in self._datastore.objects.items() if FINAL_TAG in entry.labels}
        return [uid for uid in self.series() if uid in finished]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Images without a finished label."""
        finished = set(self.get_labeled_images())
        return [uid for uid in self.series() if uid not in finished]

    def status(self) -> dict[str, Any]:
        """How many images and labels there are."""
        # The PACS is asked first: nobody shall wait for the index meanwhile.
        images, finished = self.list_images(), self.get_labeled_images()
        with self._guard:
            tags = Counter(tag for entry in self._datastore.objects.values() for tag in entry.labels)
        return {"total": len(images), "completed": len(finished), "label_tags": dict(tags)}

    def changed(self) -> None:
        """Something was stored in the PACS: the next list is read anew."""
        self._listing.changed()

    def get_image_uri(self, image_id: str) -> str:
        """The file of a series, fetched from the PACS when it is not here yet.

        Returns:
            A NIfTI file in the grid of the series; "" when there is no such series.

        Raises:
            ImageError: The series is no volume.
            StorageError: It could not be written.
            requests.RequestException: It is not here, and the PACS does not answer.
        """
        if kept := self._kept(image_id):
            return kept
        found = self._listing.find(image_id) if is_uid(image_id) else None
        if found is None:
            return ""
        with self._fetching.at(image_id):
            return self._kept(image_id) or self._fetch(found)

    def subject(self, image_id: str) -> str:
        """Whose series it is, without saying who: known for every series that was needed once or is in the PACS."""
        info = super().get_image_info(image_id)
        if not info:
            # Not here, or not any more: its patient must not count as another one.
            with suppress(requests.RequestException):
                found = self._listing.all().get(image_id)
                info = dict(found.info) if found else {}
        return patient_of(image_id, info)

    def put_back(self, image_id: str) -> bool:
        """Store the finished label that is shown in the PACS, too; one that it does not take now waits here.

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
            logger.warning("the PACS does not take the label of series %s yet: %s", image_id, type(error).__name__)
        except TotalSpineSegError as error:
            # What is wrong with the label itself will not change.
            unsent = isinstance(error, PASSING)
            raise
        finally:
            self.update_label_info(image_id, FINAL_TAG, {UNSENT: unsent})
        return not unsent

    def waiting(self) -> tuple[str, ...]:
        """Images whose finished label the PACS still has to get."""
        with self._guard:
            finished = {uid: entry.labels.get(FINAL_TAG) for uid, entry in self._datastore.objects.items()}
        return tuple(uid for uid, label in finished.items() if label and label.info.get(UNSENT))

    def fingerprint(self, image_id: str) -> str:
        """Return what changes whenever a series may have, without fetching it: the PACS counts its instances.

        Returns:
            "" where there is no such series, or the PACS does not answer.
        """
        try:
            found = self._listing.all().get(image_id)
        except requests.RequestException:
            return ""
        return "" if found is None else f"{found.instances} instances"

    def siblings(self, image_id: str) -> tuple[str, ...]:
        """Series of the same study that are here, whose coordinates can be compared with this one's."""
        known = self.series()
        study = known[image_id].study if image_id in known else None
        others = (uid for uid, other in known.items() if other.study == study and uid != image_id)
        return tuple(sorted(uid for uid in others if self._folder(uid).is_dir() and self.same_space(image_id, uid)))

    def same_space(self, one: str, other: str) -> bool:
        """Whether the coordinates of two series that are here can be compared, as far as their headers say.

        A patient who was laid down anew within a study has another frame of reference.
        """
        frames = {self._frame_of_reference(image_id) for image_id in (one, other)} - {""}
        return len(frames) < 2

    def series_folder(self, image_id: str) -> Path:
        """The DICOM files of a series, fetched when they are not here yet.

        Raises:
            ImageError: There is no such series, or it is no volume.
        """
        folder = self._folder(image_id)
        if not self.get_image_uri(image_id):
            raise ImageError(f"The PACS has no series {image_id!r}. Ask for the list.")
        with self._fetching.at(image_id):
            if not folder.is_dir():
                found = self._listing.find(image_id)
                if found is None:
                    raise ImageError(f"The PACS has no series {image_id!r} any more. Ask for the list.")
                with downloaded(self._client, found, folder.parent) as fresh:
                    fresh.rename(folder)
        return folder

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known about a series."""
        found = self._listing.all().get(image_id)
        return {**super().get_image_info(image_id), **(found.info if found else {})}

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known about a series."""
        if self.get_image_uri(image_id):
            super().update_image_info(image_id, info)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Refused: images come from the PACS.

        Raises:
            ValueError: Always.
        """
        raise ValueError("images of this server come from its PACS; store the series there")

    def remove_image(self, image_id: str) -> None:
        """Refused: images come from the PACS.

        Raises:
            ImageError: Always.
        """
        raise ImageError("images of this server come from its PACS; remove the series there")

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Show a label under a tag; see the base class. A finished one goes into the PACS unless that has it so."""
        if not self.get_image_uri(image_id):
            raise KeyError(image_id)
        tag = str(getattr(label_tag, "value", label_tag))
        # A PACS keeps a label with the names as they were sent: whoever looks there must see those that count.
        own = tag == FINAL_TAG and (not label_info.get("instance") or bool(label_info.get(RENUMBERED)))
        # To be compared with segmentations of the PACS.
        info = {"created": now_utc(), UNSENT: own, **label_info}
        saved = super().save_label(image_id, label_filename, tag, info)
        if own:
            try:
                self.put_back(image_id)
            except PASSING as error:
                logger.warning("the label of series %s goes to the PACS later: %s", image_id, error)
        return saved

    def json(self) -> dict[str, Any]:
        """The index, with the series that were not needed yet."""
        content: dict[str, Any] = super().json()
        for uid, found in self.series().items():
            content["objects"].setdefault(uid, {"image": {"ext": ".nii", "info": dict(found.info)}, "labels": {}})
        return content

    def fetch_instance(self, reference: SegReference, file: Path) -> None:
        """Write an instance of the PACS to a file."""
        found = self._client.retrieve_instance(reference.study, reference.series, reference.instance)
        found.save_as(file, write_like_original=False)

    def _kept(self, image_id: str) -> str:
        """The file of a series that is here, whole; empty for none."""
        uri: str = super().get_image_uri(image_id)
        with self._guard:
            here = bool(uri) and mark_used(Path(uri))
        return uri if here and self._is_complete(image_id) else ""

    def _is_complete(self, image_id: str) -> bool:
        """Whether all the PACS has of a series is here; it may have been fetched while it still came in."""
        folder = self._folder(image_id)
        try:
            known = self._listing.now(image_id)
        except requests.RequestException:
            # A training needs what is here, whether or not the PACS answers just now.
            return True
        if known is None or not folder.is_dir():
            return True
        # A PACS may count images that it does not give; fetching anew would change nothing and cost what is shown.
        counted = int(super().get_image_info(image_id).get(COUNTED) or 0)
        return known.instances <= max(counted, sum(1 for _ in folder.iterdir()))

    def _folder(self, image_id: str) -> Path:
        return Path(self._datastore_path) / SERIES_DIR / image_id

    def _frame_of_reference(self, image_id: str) -> str:
        """Of a series that is here; empty where it names none."""
        folder = self._folder(image_id)
        first = min(folder.iterdir(), default=None) if is_uid(image_id) and folder.is_dir() else None
        header = None if first is None else read_header(first)
        return "" if header is None else str(header.get("FrameOfReferenceUID") or "")

    def _fetch(self, series: Series) -> str:
        """Download a series and keep it as a volume, too; what was here of it stays until the new one can be read."""
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
                # Not compressed: the same series must give the same bytes whenever it is fetched.
                file = Path(name) / f"{series.uid}.nii"
                write_volume(file, volume.data, volume.grid)
                self._forget(series.uid)
                fresh.rename(folder)
                super().add_image(series.uid, str(file), {**series.info, COUNTED: series.instances})
        except ImageError as error:
            self._listing.refuse(series, str(error))
            raise
        try:
            self._make_room(series.uid)
        except (OSError, StorageError) as error:
            # Whoever asked for the series has it; the next one makes room.
            logger.warning("no room could be made for fetched series: %s", error)
        return self._kept(series.uid)

    def _make_room(self, fetched: str) -> None:
        """Remove the series unused for longest while all together take too much; not the one that was just fetched."""
        with self._guard:
            labeled = {uid for uid, entry in self._datastore.objects.items() if entry.labels}
        volumes = [self._volume(path.name) for path in self._folder(fetched).parent.iterdir() if is_uid(path.name)]

        def stays(uid: str) -> bool:
            return uid == fetched or uid in labeled or is_in_use(self._volume(uid)) or self._is_needed(uid)

        for uid in excess(measure(volumes, self._folder(fetched).parent), self._max_bytes, stays):
            turn = self._fetching.at(uid)
            if not turn.acquire(blocking=False):
                continue
            try:
                self._remove_unused(uid)
            finally:
                turn.release()

    def _remove_unused(self, image_id: str) -> None:
        """Remove a fetched series that nobody asked for in the meantime."""
        with self._index():
            volume = self._volume(image_id)
            if not volume.is_file() or is_in_use(volume):
                return
            self._datastore.objects.pop(image_id, None)
            self._update_datastore_file()
            volume.unlink()
            shutil.rmtree(self._folder(image_id), ignore_errors=True)
        logger.info("series %s was removed to make room; it is fetched again when it is needed", image_id)

    def _volume(self, image_id: str) -> Path:
        return Path(self._datastore.image_path()) / f"{image_id}.nii"

    def _forget(self, image_id: str) -> None:
        """Drop a series that is not whole, and what is shown for it; the history keeps what was submitted."""
        with self._index():
            labels = self._all_label_files(image_id)
            entry = self._datastore.objects.pop(image_id, None)
            self._update_datastore_file()
        shutil.rmtree(self._folder(image_id), ignore_errors=True)
        # Also one that the index does not know, as after a kill while room was made: it would not be replaced.
        self._volume(image_id).unlink(missing_ok=True)
        if entry is None:
            return
        logger.warning("series %s had more images than were fetched; it was fetched anew", image_id)
        # Labels on the old grid; a file that stays would be shown again after a restart.
        for file in labels:
            file.unlink(missing_ok=True)
