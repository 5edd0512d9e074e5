"""When a DICOM object was made, in one time for all: DICOM writes local time, and says seldom where."""

import re
from datetime import datetime, timedelta, timezone
from typing import Final

from pydicom import Dataset

UTC_FORMAT: Final = "%Y%m%d%H%M%S.%f"
"""How moments are written, to be sorted and compared as text."""
PAIRS: Final = (
    ("ContentDate", "ContentTime"),
    ("InstanceCreationDate", "InstanceCreationTime"),
    ("SeriesDate", "SeriesTime"),
)
"""Where an object says when it was made, best first."""
DATE: Final = re.compile(r"\d{8}")
TIME: Final = re.compile(r"(\d{2})(\d{2})?(\d{2})?(\.\d{1,6})?")
OFFSET: Final = re.compile(r"([+-])(\d{2})(\d{2})")
DCMJS: Final = {"SoftwareVersions": "0", "DeviceSerialNumber": "1"}
"""What dcmjs, with which OHIF writes, gives in place of a device; its dates are UTC, and it does not say so."""


def now_utc() -> str:
    """This moment."""
    return utc_text(datetime.now(timezone.utc))


def utc_text(moment: datetime) -> str:
    """A moment that knows its time zone."""
    return f"{moment.astimezone(timezone.utc):{UTC_FORMAT}}"


def made_utc(dataset: Dataset) -> str:
    """When an object was made: its content, else the object, else its series.

    Args:
        dataset: Its header. Not modified.

    Returns:
        UTC, to be compared as text; empty where it says nothing that can be read. Without an offset the time is taken
        for that of this machine, since a hospital's machines share it, and for UTC where dcmjs wrote it.
    """
    for date, time in PAIRS:
        day, hour = DATE.fullmatch(_text(dataset, date)), TIME.fullmatch(_text(dataset, time) or "00")
        if day is None or hour is None:
            continue
        text = "".join((day[0], *(part or "00" for part in hour.groups()[:3]), hour[4] or ".0"))
        try:
            made = datetime.strptime(text, UTC_FORMAT).replace(tzinfo=_zone(dataset))
            return f"{made.astimezone(timezone.utc):{UTC_FORMAT}}"
        except (ValueError, OverflowError):
            continue
    return ""


def _zone(dataset: Dataset) -> timezone | None:
    """The time zone of an object; None for that of this machine."""
    if offset := OFFSET.fullmatch(_text(dataset, "TimezoneOffsetFromUTC")):
        away = timedelta(hours=int(offset[2]), minutes=int(offset[3]))
        return timezone(-away if offset[1] == "-" else away)
    by_dcmjs = all(_text(dataset, keyword) == value for keyword, value in DCMJS.items())
    return timezone.utc if by_dcmjs else None


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()
