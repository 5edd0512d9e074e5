"""The series of a PACS: which there are, and which segmentation of one is the newest."""

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
"""Series a request; servers cap what they give at once."""
MAX_SERIES: Final = 20000
"""A server that ignores ``offset`` would be asked for ever."""
FIELDS: Final = ("SeriesDescription", "NumberOfSeriesRelatedInstances", "StudyDate", "StudyTime", "PatientID")
LOCALIZER: Final = re.compile(
    r"(?<![a-z])(loc|locali[sz]ers?|scout|survey|topogram|3[- ]?planes?)(?![a-z])", re.IGNORECASE
)
"""How scanners call series that only show where the others lie."""
SEG_MODALITY: Final = "SEG"
AUTOMATIC: Final = "AUTOMATIC"
"""How a segment was made (PS3.3 C.8.20.4): calculated, with no part of a user's."""
INFO_FIELDS: Final = ("StudyDate", "StudyTime", "Modality", "PatientID", "StudyInstanceUID")
"""What OHIF shows of the next sample."""


@dataclass(frozen=True)
class Series:
    """A series as a search finds it.

    Attributes:
        uid: Series instance UID, which is its image id.
        study: Study instance UID.
        info: What clients show about it.
        localizer: Whether its description calls it one.
        instances: How many instances it has; 0 where the server does not say.
    """

    uid: str
    study: str
    info: Mapping[str, str]
    localizer: bool
    instances: int


def find_series(client: DICOMwebClient, filters: Mapping[str, Any]) -> tuple[Series, ...]:
    """All series that match, page by page.

    Args:
        client: The PACS.
        filters: Such as ``{"Modality": "MR"}``.

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
    """Whose series it is, without saying who.

    Args:
        series: Its UID; stands for its patient where nothing else is known.
        info: What is known about it.
    """
    patient = str(info.get("PatientID") or info.get("StudyInstanceUID") or series)
    return f"patient-{hashlib.sha256(patient.encode()).hexdigest()[:16]}"


class Segmentations:
    """The segmentations of a PACS; each one's header is read once."""

    def __init__(self, client: DICOMwebClient) -> None:
        self._client = client
        self._known: dict[str, tuple[SegReference, ...]] = {}

    def newest(self, series: Iterable[str], study: str = "") -> dict[str, SegReference]:
        """The newest reader's segmentation of each series that has one.

        Args:
            series: Series instance UIDs.
            study: The one study to look in, which is quick; empty for the whole PACS.

        Returns:
            By series; by content date, then by date of creation. A segmentation of other things than the spine, and one
            that a model stored, ours or another, are passed over.
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
        """Headers of a series' segmentations."""
        key = f"{series.uid} {series.instances}"
        if key not in self._known:
            try:
                headers = self._client.retrieve_series_metadata(series.study, series.uid)
            except requests.HTTPError as error:
                # One that the PACS cannot give must not hide all others; it is asked for again.
                logger.warning("segmentations of series %s could not be read: %s", series.uid, type(error).__name__)
                return ()
            try:
                self._known[key] = tuple(
                    seg_reference(Dataset.from_json(header, bulk_data_uri_handler=_no_pixels)) for header in headers
                )
            except LabelError as error:
                logger.warning("segmentations of series %s are passed over: %s", series.uid, error)
                self._known[key] = ()
        return self._known[key]


def _no_pixels(*_: object) -> None:
    """Headers name where the pixels are; nobody needs them there."""


def image_series(reference: SegReference) -> str:
    """The series a segmentation was drawn on; empty where it names none, or several."""
    return reference.referenced_series[0] if len(reference.referenced_series) == 1 else ""


def is_reading(reference: SegReference) -> bool:
    """Whether a segmentation names a structure of the spine, and no model made it alone, ours or another."""
    by_program = reference.made == (AUTOMATIC,) or is_own(reference)
    return any(code_of_name(name) is not None for name in reference.labels) and not by_program


def is_own(reference: SegReference) -> bool:
    """Whether this server wrote the segmentation; a viewer that changes it writes a new one under its own name."""
    return reference.manufacturer == MANUFACTURER
