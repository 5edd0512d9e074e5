"""Find, read and remove the record of a finished scan, which states its levels and how they were made."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.cohort.outputs import REPORTS
from totalspineseg_server.files import read_json_or, storage_errors


def record_path(output: Path, name: str) -> Path:
    """Return the path of a scan's record, which exists only once everything else of the scan is written."""
    return output / REPORTS / f"{name}.json"


def read_record(output: Path, name: str) -> dict[str, Any] | None:
    """Return the record of a scan; None if it is missing or unreadable (the scan is then processed again)."""
    return read_json_or(record_path(output, name), None)


def remove_record(output: Path, name: str) -> None:
    """Mark a scan as unfinished before its files are replaced.

    Raises:
        StorageError: The record cannot be removed.
    """
    with storage_errors(record_path(output, name)):
        record_path(output, name).unlink(missing_ok=True)


PACKAGES: Final = ("torch", "numpy", "scipy", "nibabel", "SimpleITK", "connected-components-3d", "nnunetv2")


def software_versions() -> dict[str, str]:
    """Return name -> version of the software that affects results, without packages that are not installed."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
