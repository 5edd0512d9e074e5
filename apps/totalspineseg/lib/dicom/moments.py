"""Read when a DICOM object was made, as UTC: DICOM writes local time and seldom states the time zone."""

import re
from datetime import datetime, timedelta, timezone
from typing import Final

from pydicom import Dataset

UTC_FORMAT: Final = "%Y%m%d%H%M%S.%f"
"""Format of times, so that they can be sorted and compared as text."""
PAIRS: Final = (
    ("ContentDate", "ContentTime"),
    ("InstanceCreationDate", "InstanceCreationTime"),
    ("SeriesDate", "SeriesTime"),
)
"""Attributes that state when an object was made, best first."""
DATE: Final = re.compile(r"\d{8}")
TIME: Final = re.compile(r"(\d{2})(\d{2})?(\d{2})?(\.\d{1,6})?")
OFFSET: Final = re.compile(r"([+-])(\d{2})(\d{2})")
DCMJS: Final = {"SoftwareVersions": "0", "DeviceSerialNumber": "1"}
"""Values that dcmjs, which OHIF writes with, gives in place of a device; its dates are UTC without stating it."""


def now_utc() -> str:
    """Return the current time."""
    return utc_text(datetime.now(timezone.utc))


def utc_text(moment: datetime) -> str:
    """Return a time that has a time zone as UTC text."""
    return f"{moment.astimezone(timezone.utc):{UTC_FORMAT}}"


def made_utc(dataset: Dataset) -> str:
    """Return when an object was made: its content, else the object, else its series.

    Args:
        dataset: Its header. Not modified.

    Returns:
        UTC, to be compared as text; empty where nothing readable is stated. A time without an offset counts as local
        time
        of this machine, because a hospital's machines share it, or as UTC where dcmjs wrote it.
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
    """Return the time zone of an object; None for that of this machine."""
    if offset := OFFSET.fullmatch(_text(dataset, "TimezoneOffsetFromUTC")):
        away = timedelta(hours=int(offset[2]), minutes=int(offset[3]))
        return timezone(-away if offset[1] == "-" else away)
    by_dcmjs = all(_text(dataset, keyword) == value for keyword, value in DCMJS.items())
    return timezone.utc if by_dcmjs else None


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()
