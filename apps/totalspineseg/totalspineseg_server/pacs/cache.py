"""Limit the disk space of fetched series: the least recently used are removed first, but none that is needed or in
use."""

import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

MAX_GB: Final = 50.0
"""Default disk space, enough for some thousand series; a removed series is fetched again when it is needed."""
IN_USE_SECONDS: Final = 3600.0
"""How long after a request a series may still be read; a long queue takes half an hour."""


@dataclass(frozen=True)
class CachedSeries:
    """A fetched series.

    Attributes:
        uid: Its UID.
        used: Time stamp of the last request for it.
        total_bytes: Size of its files.
    """

    uid: str
    used: float
    total_bytes: int


def mark_used(file: Path) -> bool:
    """Record that a series is used now, in the access time of its volume; return False if the volume does not exist."""
    try:
        os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))
    except FileNotFoundError:
        return False
    except OSError as error:
        logger.warning("The last use of a series could not be recorded: %s", error.strerror)
    return True


def is_in_use(file: Path) -> bool:
    """Return whether a series was requested so recently that it may still be read."""
    return time.time() - file.stat().st_atime < IN_USE_SECONDS


def measure(volumes: Iterable[Path], folder: Path) -> tuple[CachedSeries, ...]:
    """Return the size and last use of fetched series.

    Args:
        volumes: Their volumes, ``<uid>.nii``; missing ones are left out.
        folder: Folder of their DICOM files, ``<uid>/*``.
    """
    cached = []
    for volume in volumes:
        try:
            stat = volume.stat()
            files = sum(file.stat().st_size for file in (folder / volume.stem).glob("*"))
        except FileNotFoundError:
            continue
        cached.append(CachedSeries(volume.stem, stat.st_atime, stat.st_size + files))
    return tuple(cached)


def excess(cached: Iterable[CachedSeries], max_bytes: float, is_needed: Callable[[str], bool]) -> tuple[str, ...]:
    """Return the series to remove so that the rest fits, the least recently used first.

    Args:
        cached: All fetched series.
        max_bytes: Disk space for all.
        is_needed: Whether a series must stay; called only for candidates to be removed.
    """
    series = sorted(cached, key=lambda one: one.used)
    over = sum(one.total_bytes for one in series) - max_bytes
    found = []
    for one in series:
        if over <= 0:
            break
        if not is_needed(one.uid):
            found.append(one.uid)
            over -= one.total_bytes
    return tuple(found)
