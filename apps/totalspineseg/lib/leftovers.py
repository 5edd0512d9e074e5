"""Files and folders that a crash left half-written: how they are called, and their removal."""

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

PARTIAL_PREFIX: Final = ".partial-"
"""Files and folders under construction begin so; readers skip names with a leading dot."""
EARLIER_PREFIX: Final = ".staging-"
"""How folders under construction began in earlier versions of this software."""
DAY_S: Final = 24 * 3600.0
"""What nobody touched for a day belongs to a killed process, seconds."""


def remove_leftovers(folder: Path, older_than_s: float = DAY_S) -> None:
    """Remove what a crash left half-written in a folder, files and folders.

    Others may finish or remove theirs at the same time; what cannot be removed stays.

    Args:
        folder: Looked at itself, not below.
        older_than_s: What was changed since may still be written.
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
