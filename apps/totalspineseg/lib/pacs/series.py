"""List the series of a PACS, and find the newest segmentation of a series."""

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import requests
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset

from lib.dicom.seg_object import SegReference, seg_reference
from lib.dicom.seg_writer import MANUFACTURER
from lib.errors import LabelError
from lib.spellings import code_of_name

logger = logging.getLogger(__name__)

PAGE: Final = 200
"""Series in one request; servers limit how many they return at once."""
MAX_SERIES: Final = 20000
"""Maximum number of series; a server that ignores ``offset`` would otherwise be asked forever."""
FIELDS: Final = ("SeriesDescription", "NumberOfSeriesRelatedInstances", "StudyDate", "StudyTime", "PatientID")
LOCALIZER: Final = re.compile(
    r"(?<![a-z])(loc|locali[sz]ers?|scout|survey|topogram|3[- ]?planes?)(?![a-z])", re.IGNORECASE
)
"""Descriptions of series that only show where the others lie."""
SEG_MODALITY: Final = "SEG"
AUTOMATIC: Final = "AUTOMATIC"
"""Algorithm type of a segment (PS3.3 C.8.20.4) that was calculated without a user's part."""
INFO_FIELDS: Final = ("StudyDate", "StudyTime", "Modality", "PatientID", "StudyInstanceUID")
"""Fields that OHIF shows of the next sample."""


@dataclass(frozen=True)
class Series:
    """A series as a search finds it.

    Attributes:
        uid: Series instance UID, which is its image id.
        study: Study instance UID.
        info: Fields that clients show.
        localizer: Whether its description says that it is a localizer.
        instances: Number of its instances; 0 where the server does not report it.
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
        Each series once, in the server's order; none when nothing matches.
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
    return tuple(found.values())


def _series(entry: Dataset) -> Series | None:
    uid, study = str(entry.get("SeriesInstanceUID", "")), str(entry.get("StudyInstanceUID", ""))
    if not (uid and study):
        return None
    info = {name: str(entry.get(name) or "") for name in INFO_FIELDS}
    info |= {"SeriesInstanceUID": uid, "RetrieveURL": f"/proxy/dicom/wado/studies/{study}/series/{uid}"}
    description = str(entry.get("SeriesDescription") or "")
    count = entry.get("NumberOfSeriesRelatedInstances")
    return Series(uid, study, info, LOCALIZER.search(description) is not None, int(count or 0))


def patient_of(series: str, info: Mapping[str, Any]) -> str:
    """Return an anonymous id of a series' patient.

    Args:
        series: Its UID, used in place of the patient where nothing else is known.
        info: Information about the series.
    """
    patient = str(info.get("PatientID") or info.get("StudyInstanceUID") or series)
    return f"patient-{hashlib.sha256(patient.encode()).hexdigest()[:16]}"


class Segmentations:
    """The segmentations of a PACS; each header is read once."""

    def __init__(self, client: DICOMwebClient) -> None:
        self._client = client
        self._known: dict[str, tuple[SegReference, ...]] = {}

    def newest(self, series: Iterable[str], study: str = "") -> dict[str, SegReference]:
        """Return the newest reader's segmentation of each series that has one.

        Args:
            series: Series instance UIDs.
            study: The one study to search, which is quick; empty for the whole PACS.

        Returns:
            References by series; the newest by content date, then by date of creation. Segmentations of other things
            than
            the spine, and those that a model stored, ours or another, are skipped.
        """
        wanted = frozenset(series)
        where = {"StudyInstanceUID": study} if study else {}
        found: dict[str, SegReference] = {}
        for entry in find_series(self._client, {"Modality": SEG_MODALITY, **where}):
            for reference in self._references(entry):
                image = image_series(reference)
                if image not in wanted or not is_reading(reference):
                    continue
                if image not in found or reference.created > found[image].created:
                    found[image] = reference
        return found

    def _references(self, series: Series) -> tuple[SegReference, ...]:
        """Return the headers of a series' segmentations."""
        key = f"{series.uid} {series.instances}"
        if key not in self._known:
            try:
                headers = self._client.retrieve_series_metadata(series.study, series.uid)
            except requests.HTTPError as error:
                # One that the PACS cannot return must not hide all others; it is requested again.
                logger.warning("Segmentations of series %s could not be read: %s", series.uid, type(error).__name__)
                return ()
            try:
                self._known[key] = tuple(
                    seg_reference(Dataset.from_json(header, bulk_data_uri_handler=_no_pixels)) for header in headers
                )
            except LabelError as error:
                logger.warning("Segmentations of series %s are skipped: %s", series.uid, error)
                self._known[key] = ()
        return self._known[key]


def _no_pixels(*_: object) -> None:
    """Skip pixels that a header refers to."""


def image_series(reference: SegReference) -> str:
    """Return the series a segmentation was drawn on; empty where it names none, or several."""
    return reference.referenced_series[0] if len(reference.referenced_series) == 1 else ""


def is_reading(reference: SegReference) -> bool:
    """Return whether a segmentation names a structure of the spine and was not made by a model alone."""
    by_program = reference.made == (AUTOMATIC,) or is_own(reference)
    return any(code_of_name(name) is not None for name in reference.labels) and not by_program


def is_own(reference: SegReference) -> bool:
    """Return whether this server wrote the segmentation; a viewer that changes it writes a new one in its own name."""
    return reference.manufacturer == MANUFACTURER
