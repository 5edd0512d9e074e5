"""Read and write the record of a finished scan: its levels, and how it was made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.cohort.outputs import REPORTS
from lib.errors import StorageError
from lib.volume_io import write_atomic


def record_path(output: Path, name: str) -> Path:
    """Return the path of a scan's record, which exists only once everything else of the scan is written."""
    return output / REPORTS / f"{name}.json"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically.

    Raises:
        StorageError: The file could not be written.
    """
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically.

    Raises:
        StorageError: The file could not be written.
    """

    def write(temporary: Path) -> None:
        # File names may hold bytes that are not text; their escapes in JSON are read back unchanged.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")

    write_atomic(path, write)


def read_record(output: Path, name: str) -> dict[str, Any] | None:
    """Return the record of a scan; None when it is missing or unreadable (the scan is then processed again)."""
    try:
        content = json.loads(record_path(output, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def remove_record(output: Path, name: str) -> None:
    """Mark a scan as unfinished before its files are replaced.

    Raises:
        StorageError: The record cannot be removed.
    """
    try:
        record_path(output, name).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"The record of {name!r} cannot be replaced ({error.strerror}). Check the permissions of OUTPUT."
        ) from error
