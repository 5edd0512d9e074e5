"""The PACS as MONAI Label sees it: series are images, kept in a folder of this server once they were needed."""

import hashlib
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import requests
from dicomweb_client import DICOMwebClient

from lib.corrections.datastore import StudiesDatastore
from lib.dicom.seg_object import SegReference
from lib.dicom.series import read_series
from lib.errors import ImageError, StorageError
from lib.pacs.address import is_uid
from lib.pacs.series import Segmentations, Series, find_series
from lib.volume_io import write_volume

logger = logging.getLogger(__name__)

FRESH_SECONDS: Final = 10.0
"""A client asks for the list several times in a row; what arrived in the PACS meanwhile shows this much later."""
SERIES_DIR: Final = "dicom"
"""Folder of the series as they came."""
FINAL_TAG: Final = "final"
COUNTED: Final = "instances"
"""What is known about a fetched image: how many instances the PACS said it had then."""
MIN_SLICES: Final = 3
"""Fewer instances are a localizer or a screenshot, unless the one instance holds many frames."""

T = TypeVar("T")
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
        read_only: Whether labels are refused.
    """

    def __init__(
        self,
        client: DICOMwebClient,
        folder: Path,
        filters: Mapping[str, Any],
        *,
        publisher: Publisher,
        read_only: bool = False,
    ) -> None:
        self._client = client
        self._filters = dict(filters)
        self._publisher = publisher
        self._listed: tuple[float, dict[str, Series]] | None = None
        self._listing = threading.Lock()
        self._fetching: dict[str, threading.Lock] = {}
        self._unusable: dict[str, int] = {}
        self.segmentations = Segmentations(client)
        super().__init__(str(folder), auto_reload=False, read_only=read_only)

    def name(self) -> str:
        """The server's address."""
        address: str = self._client.base_url
        return address

    def series(self) -> Mapping[str, Series]:
        """The series that are offered as images, by UID: all but localizers and what could not be read."""
        return {
            uid: found
            for uid, found in self._all().items()
            # One that was refused while it still came in is offered again once it has more instances.
            if _is_volume(found) and self._unusable.get(uid) != found.instances
        }

    def list_images(self) -> list[str]:
        """Ids of the images."""
        return list(self.series())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Images with a finished label."""
        finished = {uid for uid, entry in self._datastore.objects.items() if FINAL_TAG in entry.labels}
        return [uid for uid in self.series() if uid in finished]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Images without a finished label."""
        finished = set(self.get_labeled_images())
        return [uid for uid in self.series() if uid not in finished]

    def changed(self) -> None:
        """Something was stored in the PACS: the next list is read anew."""
        self._listed = None

    def get_image_uri(self, image_id: str) -> str:
        """The file of a series, fetched from the PACS when it is not here yet.

        Returns:
            A NIfTI file in the grid of the series; "" when there is no such series.

        Raises:
            ImageError: The series is no volume.
            StorageError: It could not be written.
        """
        kept = self._kept(image_id)
        if kept and self._is_complete(image_id):
            return kept
        found = self._all().get(image_id) if is_uid(image_id) else None
        if found is None:
            return ""
        with self._listing:
            lock = self._fetching.setdefault(image_id, threading.Lock())
        with lock:
            if not self._is_complete(image_id):
                self._forget(image_id)
            return self._kept(image_id) or self._fetch(found)

    def subject(self, image_id: str) -> str:
        """Whose series it is, without saying who: known for every series that was needed once or is in the PACS."""
        info = super().get_image_info(image_id)
        if not info:
            # Not here, or not any more: its patient must not count as another one.
            with suppress(requests.RequestException):
                found = self._all().get(image_id)
                info = dict(found.info) if found else {}
        patient = str(info.get("PatientID") or info.get("StudyInstanceUID") or image_id)
        return f"patient-{hashlib.sha256(patient.encode()).hexdigest()[:16]}"

    def put_back(self, image_id: str) -> None:
        """Store the finished label that is shown in the PACS, too."""
        file = self.get_label_uri(image_id, FINAL_TAG)
        if file:
            self._publisher(image_id, Path(file), self.get_label_info(image_id, FINAL_TAG))
            self.changed()

    def siblings(self, image_id: str) -> tuple[str, ...]:
        """Series of the same study, whose coordinates can be compared with this one's."""
        known = self.series()
        study = known[image_id].study if image_id in known else None
        return tuple(sorted(uid for uid, other in known.items() if other.study == study and uid != image_id))

    def series_folder(self, image_id: str) -> Path:
        """The DICOM files of a series, fetched when they are not here yet.

        Raises:
            ImageError: There is no such series, or it is no volume.
        """
        folder = self._folder(image_id)
        if not self.get_image_uri(image_id):
            raise ImageError(f"a series of the PACS is required, got {image_id!r}; ask for the list")
        if not folder.is_dir():
            self._download(self._all()[image_id], folder)
        return folder

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known about a series."""
        found = self._all().get(image_id)
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

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Show a label under a tag; see the base class. A finished one goes into the PACS unless it came from there."""
        if not self.get_image_uri(image_id):
            raise KeyError(image_id)
        tag = str(getattr(label_tag, "value", label_tag))
        # As DICOM writes time, to be compared with segmentations of the PACS.
        info = {"created": f"{datetime.now():%Y%m%d%H%M%S.%f}", **label_info}
        saved = super().save_label(image_id, label_filename, tag, info)
        if tag == FINAL_TAG and not label_info.get("instance"):
            self._publisher(image_id, Path(label_filename), label_info)
        self.changed()
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

    def refuse(self, image_id: str, reason: str) -> None:
        """Offer a series no more, for it could not be read."""
        logger.warning("series %s is not offered: %s", image_id, reason)
        known = self._all().get(image_id)
        self._unusable[image_id] = known.instances if known else 0

    def _all(self) -> dict[str, Series]:
        with self._listing:
            if self._listed is None or time.monotonic() - self._listed[0] > FRESH_SECONDS:
                found = {series.uid: series for series in find_series(self._client, self._filters)}
                self._listed = time.monotonic(), found
            return self._listed[1]

    def _kept(self, image_id: str) -> str:
        uri: str = StudiesDatastore.get_image_uri(self, image_id)
        return uri if uri and Path(uri).is_file() else ""

    def _is_complete(self, image_id: str) -> bool:
        """Whether all the PACS has of a series is here; it may have been fetched while it still came in."""
        folder = self._folder(image_id)
        try:
            known = self._all().get(image_id)
        except requests.RequestException:
            # A training needs what is here, whether or not the PACS answers just now.
            return True
        if known is None or not folder.is_dir():
            return True
        # A PACS may count images that it does not give; fetching anew would change nothing and cost what is shown.
        counted = int(super().get_image_info(image_id).get(COUNTED) or 0)
        return known.instances <= max(counted, sum(1 for _ in folder.iterdir()))

    def _forget(self, image_id: str) -> None:
        """Drop a series that is not whole, and what is shown for it; the history keeps what was submitted."""
        logger.warning("series %s has more images than were fetched; it is fetched anew", image_id)
        kept = self._kept(image_id)
        with self._guard, self._index():
            entry = self._datastore.objects.pop(image_id, None)
            self._update_datastore_file(lock=False)
        for tag, label in entry.labels.items() if entry else ():
            # On the old grid; a file that stays would be shown again after a restart.
            (Path(self._datastore.label_path(tag)) / f"{image_id}{label.ext}").unlink(missing_ok=True)
        if kept:
            Path(kept).unlink(missing_ok=True)
        shutil.rmtree(self._folder(image_id), ignore_errors=True)

    def _folder(self, image_id: str) -> Path:
        return Path(self._datastore_path) / SERIES_DIR / image_id

    def _fetch(self, series: Series) -> str:
        """Download a series and keep it as a volume, too."""
        folder = self._folder(series.uid)
        if not folder.is_dir():
            self._download(series, folder)
        try:
            volume = read_series(folder)
        except ImageError as error:
            self.refuse(series.uid, str(error))
            raise
        with tempfile.TemporaryDirectory(prefix="totalspineseg-series-") as name:
            # Not compressed: the same series must give the same bytes whenever it is fetched.
            file = Path(name) / f"{series.uid}.nii"
            write_volume(file, volume.data, volume.grid)
            super().add_image(series.uid, str(file), {**series.info, COUNTED: series.instances})
        return self._kept(series.uid)

    def _download(self, series: Series, folder: Path) -> None:
        """All instances of a series, whole or not at all."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        try:
            for number, instance in enumerate(_instances(self._client, series)):
                instance.save_as(partial / f"{number:05d}.dcm", write_like_original=False)
            partial.chmod(0o755)
            partial.rename(folder)
        except OSError as error:
            raise StorageError(
                f"room and permission to write to {folder.parent} are required, got {error.strerror or str(error)!r}; "
                "free disk space"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _instances(client: DICOMwebClient, series: Series) -> Sequence[Any]:
    found: list[Any] = client.retrieve_series(series.study, series.uid)
    return sorted(found, key=lambda instance: str(instance.SOPInstanceUID))


def _is_volume(series: Series) -> bool:
    """Whether a series may be a volume; a single instance may hold many frames."""
    return not series.localizer and (series.instances <= 1 or series.instances >= MIN_SLICES)
