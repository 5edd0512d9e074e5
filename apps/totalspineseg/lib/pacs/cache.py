"""How much room fetched series may take: those unused for longest go first, and never one that is needed or read."""

import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

MAX_GB: Final = 50.0
"""Some thousand series; what is removed is fetched again when it is needed."""
IN_USE_SECONDS: Final = 3600.0
"""A series that was asked for since may still be read: a long line of requests takes half an hour."""


@dataclass(frozen=True)
class Kept:
    """A fetched series.

    Attributes:
        uid: Its UID.
        used: When it was asked for last, as time stamp.
        total_bytes: What its files take.
    """

    uid: str
    used: float
    total_bytes: int


def mark_used(file: Path) -> bool:
    """Note that a series is used now (its volume's access time); False when the volume is not there."""
    try:
        os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))
    except FileNotFoundError:
        return False
    except OSError as error:
        logger.warning("when a series was used could not be noted: %s", error.strerror)
    return True


def is_in_use(file: Path) -> bool:
    """Whether a series was asked for so lately that it may still be read."""
    return time.time() - file.stat().st_atime < IN_USE_SECONDS


def measure(volumes: Iterable[Path], folder: Path) -> tuple[Kept, ...]:
    """What fetched series take.

    Args:
        volumes: Their volumes, ``<uid>.nii``; those that are gone are left out.
        folder: Where their DICOM files lie, ``<uid>/*``.
    """
    kept = []
    for volume in volumes:
        try:
            stat = volume.stat()
            files = sum(file.stat().st_size for file in (folder / volume.stem).glob("*"))
        except FileNotFoundError:
            continue
        kept.append(Kept(volume.stem, stat.st_atime, stat.st_size + files))
    return tuple(kept)


def excess(kept: Iterable[Kept], max_bytes: float, is_needed: Callable[[str], bool]) -> tuple[str, ...]:
    """Series to remove so that the rest takes no more room than it may, unused for longest first.

    Args:
        kept: All fetched series.
        max_bytes: Room for all.
        is_needed: Whether a series stays in any case; asked only for those whose turn it is.
    """
    series = sorted(kept, key=lambda one: one.used)
    over = sum(one.total_bytes for one in series) - max_bytes
    found = []
    for one in series:
        if over <= 0:
            break
        if not is_needed(one.uid):
            found.append(one.uid)
            over -= one.total_bytes
    return tuple(found)
