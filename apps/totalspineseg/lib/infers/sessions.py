"""Sessions that are over, removed from disk, and with them what a crash or a full disk left of half-made ones."""

import json
import logging
import time
from pathlib import Path
from typing import Final

from monailabel.utils.sessions import Sessions

logger = logging.getLogger(__name__)

META_FILE: Final = "meta.info"
"""The host's name for what it knows of a session; written last."""


def remove_expired(sessions: Sessions) -> int:
    """Remove what is over; the host's own way ends for good at the first folder that it cannot read.

    Args:
        sessions: The host's.

    Returns:
        How many folders are gone. Nothing is raised: what cannot be removed is tried again the next time.
    """
    root, now, count = Path(sessions.store_path), time.time(), 0
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        try:
            if folder.is_dir() and _end(folder, sessions.expiry) < now:
                sessions.remove_session(folder.name)
                count += 1
        except OSError as error:
            logger.warning("session %s could not be looked at: %s", folder.name, error.strerror)
    return count


def _end(folder: Path, expiry: int) -> float:
    """When a session ends, as time stamp; one that is not whole may still come in, and counts from its beginning."""
    try:
        known = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        return float(known["last_access_ts"]) + float(known["expiry"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return folder.stat().st_mtime + expiry
