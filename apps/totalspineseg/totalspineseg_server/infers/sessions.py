"""Remove expired sessions from disk, and incomplete ones that a crash or a full disk left."""

import logging
import time
from pathlib import Path
from typing import Final

from monailabel.utils.sessions import Sessions

from totalspineseg_server.files import read_json_or

logger = logging.getLogger(__name__)

META_FILE: Final = "meta.info"
"""MONAI Label's file about a session; written last."""


def remove_expired(sessions: Sessions) -> int:
    """Remove expired sessions; MONAI Label's own cleaner stops for good at the first folder that it cannot read.

    Args:
        sessions: MONAI Label's sessions.

    Returns:
        The number of removed folders. Nothing is raised: a failed removal is tried again next time.
    """
    root, now, count = Path(sessions.store_path), time.time(), 0
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        try:
            if folder.is_dir() and _end(folder, sessions.expiry) < now:
                sessions.remove_session(folder.name)
                count += 1
        except OSError as error:
            logger.warning("Session %s could not be read: %s", folder.name, error.strerror)
    return count


def _end(folder: Path, expiry: int) -> float:
    """Return the time when a session ends; an incomplete one may still be arriving, so its time is counted from the
    time of its folder."""
    known = read_json_or(folder / META_FILE, {})
    try:
        return float(known["last_access_ts"]) + float(known["expiry"])
    except (ValueError, KeyError, TypeError):
        return folder.stat().st_mtime + expiry


class TrustedPath(str):
    """Path of a file that the front received or that belongs to a session; requests as JSON cannot hold one."""

    __slots__ = ()
