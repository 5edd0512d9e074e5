"""List the series of a PACS, download one, and read those that are here without the PACS."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset

from totalspineseg_server.corrections.ids import PACS_DIR, is_plain_stem
from totalspineseg_server.corrections.image_records import IMAGES_DIR, ImageRecords, anonymous, older_index
from totalspineseg_server.errors import ImageError
from totalspineseg_server.files import partial_folder, storage_errors
from totalspineseg_server.io.dicom.headers import is_localizer
from totalspineseg_server.io.dicom.seg_object import SegReference
from totalspineseg_server.io.dicom.seg_writer import MANUFACTURER
from totalspineseg_server.pacs import pacs_messages

logger = logging.getLogger(__name__)

PAGE: Final = 200
"""Number of series in one request; servers limit how many they return at once."""
MAX_SERIES: Final = 20000
"""Largest number of series; a server that ignores ``offset`` would otherwise be asked forever."""
FIELDS: Final = ("SeriesDescription", "NumberOfSeriesRelatedInstances", "StudyDate", "StudyTime", "PatientID")
INFO_FIELDS: Final = ("StudyDate", "StudyTime", "Modality", "PatientID", "StudyInstanceUID", "SeriesDescription")
"""Fields that clients show: OHIF those of the next sample, the lab's page those of each series."""


@dataclass(frozen=True)
class Series:
    """A series as a search finds it.

    Attributes:
        uid: Series instance UID, which is its image id.
        study: Study instance UID.
        info: Fields that clients show.
        localizer: Whether its description says that it is a localizer.
        instances: Number of its instances; 0 if the server does not report it.
    """

    uid: str
    study: str
    info: Mapping[str, str]
    localizer: bool
    instances: int


def find_series(client: DICOMwebClient, filters: Mapping[str, Any]) -> tuple[Series, ...]:
    """Return all series that match, page by page.

    Args:
        client: The PACS.
        filters: For example ``{"Modality": "MR"}``.

    Returns:
        Each series once, in the server's order; none if nothing matches.
    """
    found: dict[str, Series] = {}
    for offset in range(0, MAX_SERIES, PAGE):
        page = client.search_for_series(
            search_filters=dict(filters), fields=list(FIELDS), limit=PAGE, offset=offset, fuzzymatching=None
        )
        before = len(found)
        for entry in page:
            series = _series(Dataset.from_json(entry))
            if series is not None:
                found.setdefault(series.uid, series)
        if len(page) < PAGE or len(found) == before:
            break
    else:
        logger.warning(
            "Only the first %d series of the PACS are listed. Narrow MONAI_LABEL_DICOMWEB_SEARCH_FILTER to the series "
            "that you need.",
            len(found),
        )
    return tuple(found.values())


def _series(entry: Dataset) -> Series | None:
    uid, study = str(entry.get("SeriesInstanceUID", "")), str(entry.get("StudyInstanceUID", ""))
    if not (uid and study):
        return None
    info = {name: str(entry.get(name) or "") for name in INFO_FIELDS}
    info |= {"SeriesInstanceUID": uid, "RetrieveURL": f"/proxy/dicom/wado/studies/{study}/series/{uid}"}
    description = str(entry.get("SeriesDescription") or "")
    count = entry.get("NumberOfSeriesRelatedInstances")
    return Series(uid, study, info, is_localizer(description), int(count or 0))


def patient_of(series: str, info: Mapping[str, Any]) -> str:
    """Return an anonymous id of a series' patient.

    Args:
        series: Its UID, which is used in place of the patient if nothing else is known.
        info: Information about the series.
    """
    patient = str(info.get("PatientID") or info.get("StudyInstanceUID") or series)
    return anonymous(patient)


def image_series(reference: SegReference) -> str:
    """Return the series on which a segmentation was drawn; empty if it names none, or several."""
    return reference.referenced_series[0] if len(reference.referenced_series) == 1 else ""


def is_own(reference: SegReference) -> bool:
    """Return whether this server wrote the segmentation; a viewer that changes it writes a new one under its own
    name."""
    return reference.manufacturer == MANUFACTURER


@contextmanager
def downloaded(client: DICOMwebClient, series: Series, below: Path) -> Iterator[Path]:
    """Write all instances of a series to a new folder with a temporary name.

    The caller may rename the folder to keep it; otherwise it is removed in the end, whatever happens.

    Args:
        client: The PACS.
        series: The series.
        below: Folder in which the new one is made; it is also made if it is missing.

    Yields:
        The new folder with all instances.

    Raises:
        requests.RequestException: The PACS did not send the series.
        ImageError: An instance of the series is not a DICOM file.
        StorageError: The series could not be written.
    """
    instances = sorted(
        client.retrieve_series(series.study, series.uid), key=lambda instance: str(instance.get("SOPInstanceUID"))
    )
    with partial_folder(below) as partial:
        with storage_errors(below):
            for number, instance in enumerate(instances):
                _write(instance, partial / f"{number:05d}.dcm")
        yield partial


def _write(instance: Dataset, path: Path) -> None:
    """Write one instance; pydicom raises errors of many types if it lacks attributes that every file needs."""
    try:
        instance.save_as(path, write_like_original=False)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(pacs_messages.INCOMPLETE_SERIES.format(fault=type(error).__name__)) from error


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
        """Return an anonymous id of a series' patient, the same as the running server's.

        Raises:
            StorageError: The record of the series cannot be read.
        """
        return patient_of(series, self._records.read(series))
