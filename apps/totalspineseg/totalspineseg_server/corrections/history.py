"""Make ids and names of folders for the history of the studies, and list the entries of a folder."""

import hashlib
import re
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final
from urllib.parse import quote

HISTORY_DIR: Final = ".totalspineseg"
"""Folder inside the studies folder; hidden, so that the datastore does not list its files as images."""
PACS_DIR: Final = "pacs"
"""Folder for a PACS, below the history: fetched series and the labels shown to clients."""
STUDIES_DIR: Final = "studies"
"""Folder for images that are only read, below the history: the index and the labels shown to clients."""
MAX_FOLDER_NAME: Final = 200
"""Largest length of a folder name, bytes; file systems allow 255, and endings need some room."""
ID_TIME: Final = re.compile(r"(\d{4}[01]\d[0-3]\dT[0-2]\d[0-5]\d[0-5]\d)(\.\d{6})?Z-[0-9a-f]+")
"""Pattern of ids; ids of trainings, which people type, have no fraction of a second."""


def new_id(earlier: Iterable[str] = ()) -> str:
    """Return an id that sorts by time and never repeats: ``20260131T120000.123456Z-1a2b3c4d``.

    Args:
        earlier: Existing ids, perhaps among other names. The new id sorts after these ids, even if the clock was ahead
            when they were made.
    """
    return f"{time_after(earlier, timedelta(microseconds=1)):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(4)}"


def time_after(earlier: Iterable[str], step: timedelta) -> datetime:
    """Return the time in UTC; if it is not later than the latest earlier id, return that id's time plus a step.

    Args:
        earlier: Ids, perhaps among other names, which are ignored.
        step: Smallest difference between two ids of a format.
    """
    now = datetime.now(timezone.utc)
    latest = max((match.groups(".0") for match in map(ID_TIME.fullmatch, earlier) if match), default=None)
    if latest is None:
        return now
    return max(now, datetime.strptime("".join(latest), "%Y%m%dT%H%M%S.%f").replace(tzinfo=timezone.utc) + step)


def now_text() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def text_of_time(seconds: float) -> str:
    """Return a time in the form of ``now_text``: UTC, ISO 8601."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def folder_name(image_id: str) -> str:
    """Return a safe and unique folder name for an image id, whatever characters the id has.

    Raises:
        ValueError: The id is empty.
    """
    if not image_id:
        raise ValueError("expected an image id, got ''")
    name = quote(image_id, safe=" ,+=@()")
    name = name.replace(".", "%2E", 1) if name.startswith(".") else name
    if len(name) > MAX_FOLDER_NAME:
        name = f"{name[: MAX_FOLDER_NAME - 17]}-{hashlib.sha256(image_id.encode()).hexdigest()[:16]}"
    return name


def names(parent: Path) -> tuple[str, ...]:
    """Return the names of the entries of a folder, oldest first."""
    return tuple(entry.name for entry in entries(parent))


def entries(parent: Path) -> tuple[Path, ...]:
    """Return the complete entries of a folder, oldest first; empty if there is no folder."""
    if not parent.is_dir():
        return ()
    return tuple(sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith(".")))
