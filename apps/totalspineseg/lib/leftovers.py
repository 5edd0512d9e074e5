"""Name and remove incomplete files and folders that a crash left."""

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

PARTIAL_PREFIX: Final = ".partial-"
"""Prefix of files and folders under construction; readers skip names with a leading dot."""
EARLIER_PREFIX: Final = ".staging-"
"""Prefix of folders under construction in earlier versions of this software."""
DAY_S: Final = 24 * 3600.0
"""Time without a change after which a file belongs to a killed process, seconds."""


def remove_leftovers(folder: Path, older_than_s: float = DAY_S) -> None:
    """Remove incomplete files and folders that a crash left in a folder.

    Other processes may finish or remove theirs at the same time; files that cannot be removed stay.

    Args:
        folder: Folder to clean, without those below it.
        older_than_s: Files changed more recently may still be in use, and stay.
    """
    limit = time.time() - older_than_s
    for prefix in (PARTIAL_PREFIX, EARLIER_PREFIX):
        for path in folder.glob(f"{prefix}*"):
            with suppress(OSError):
                if path.stat().st_mtime >= limit:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
