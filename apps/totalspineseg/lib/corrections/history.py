"""The studies' own history folder: ids, folder names, and records that are whole or absent."""

import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from lib.errors import StorageError
from lib.leftovers import PARTIAL_PREFIX

HISTORY_DIR: Final = ".totalspineseg"
"""Folder inside the studies folder; hidden, so that the datastore does not take its files for images."""
PACS_DIR: Final = "pacs"
"""Of a PACS, below the history: fetched series and the labels shown to clients."""
STUDIES_DIR: Final = "studies"
"""Of a folder of images that is only read, below the history: its index and the labels shown to clients."""
INDEX_FILE: Final = "datastore_v2.json"
"""The host's name for the index of studies, in either of the two."""
MAX_FOLDER_NAME: Final = 200
"""Bytes; file systems allow 255, the rest is room for endings."""
CHUNK_BYTES: Final = 1 << 20
ID_TIME: Final = re.compile(r"(\d{4}[01]\d[0-3]\dT[0-2]\d[0-5]\d[0-5]\d)(\.\d{6})?Z-[0-9a-f]+")
"""How ids look; those of trainings, which people type, have no fraction of a second."""

Record = Mapping[str, Any]


def new_id(earlier: Iterable[str] = ()) -> str:
    """An id that sorts by time and never repeats: ``20260131T120000.123456Z-1a2b3c4d``.

    Args:
        earlier: Ids of what came before, and maybe other names: the new id sorts behind these ids, even where the clock
            was ahead when they were made.
    """
    return f"{time_after(earlier, timedelta(microseconds=1)):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(4)}"


def time_after(earlier: Iterable[str], step: timedelta) -> datetime:
    """The time in UTC; where it is not later than an earlier id, that one's with a step added.

    Args:
        earlier: Ids, and maybe other names, which are passed over.
        step: What ids of one format differ by at least.
    """
    now = datetime.now(timezone.utc)
    latest = max((match.groups(".0") for match in map(ID_TIME.fullmatch, earlier) if match), default=None)
    if latest is None:
        return now
    return max(now, datetime.strptime("".join(latest), "%Y%m%dT%H%M%S.%f").replace(tzinfo=timezone.utc) + step)


def now_text() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def text_of_time(seconds: float) -> str:
    """Return a time stamp in UTC, ISO 8601, as ``now_text``."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def folder_name(image_id: str) -> str:
    """A single, harmless, unique folder name for an image id, whatever characters it has.

    Raises:
        ValueError: The id is empty.
    """
    if not image_id:
        raise ValueError("an image id is required, got ''; name the image")
    name = quote(image_id, safe=" ,+=@()")
    name = name.replace(".", "%2E", 1) if name.startswith(".") else name
    if len(name) > MAX_FOLDER_NAME:
        name = f"{name[: MAX_FOLDER_NAME - 17]}-{hashlib.sha256(image_id.encode()).hexdigest()[:16]}"
    return name


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder (a DICOM series) in order of their names."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as content:
            while chunk := content.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, record: Record) -> None:
    """Write a record and sync it to disk. Meant for a folder that is not yet under its final name."""
    # Half a surrogate pair, which a client may send, is no text; escaped, JSON reads it back as it was.
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(record, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        StorageError: The record is damaged.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"The record {path.name!r} in {path.parent} cannot be read ({error}).") from error
    if not isinstance(record, dict):
        raise StorageError(f"The record {path.name!r} in {path.parent} is damaged: it holds no fields.")
    return record


def copy_synced(source: Path, target: Path) -> None:
    """Copy a file and sync it to disk."""
    with source.open("rb") as read, target.open("xb") as write:
        shutil.copyfileobj(read, write, CHUNK_BYTES)
        write.flush()
        os.fsync(write.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_entry(parent: Path, entry_id: str, fill: Callable[[Path], None]) -> Path:
    """Add a folder ``parent/entry_id`` that appears complete or not at all.

    Args:
        parent: Where entries are collected; made when missing.
        entry_id: Name of the new entry.
        fill: Writes (and syncs) the files of the entry into the folder it is given.

    Returns:
        The new entry.

    Raises:
        StorageError: It could not be written; nothing is left under a final name.
    """
    partial: Path | None = None
    try:
        with storage_errors(parent):
            parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=parent))
            fill(partial)
            partial.chmod(0o755)
            _rename(partial, parent / entry_id)
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return parent / entry_id


def move_entry(entry: Path, parent: Path) -> Path:
    """Move an entry below another folder of the history, in one step.

    Args:
        entry: Its folder, complete.
        parent: Where it belongs; made when missing.

    Returns:
        Its new folder.

    Raises:
        StorageError: It could not be moved, and is where it was.
    """
    with storage_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        _rename(entry, parent / entry.name)
        sync_folder(entry.parent)
    return parent / entry.name


def _rename(source: Path, target: Path) -> None:
    sync_folder(source)
    source.rename(target)
    sync_folder(target.parent)


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn the system's errors while writing below a folder into one sentence.

    Raises:
        StorageError: In place of any ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"Nothing could be written to {folder} ({error.strerror or error}): free disk space there, or correct its "
            "permissions, and send it again."
        ) from error


def names(parent: Path) -> tuple[str, ...]:
    """The names of the entries of a folder, oldest first."""
    return tuple(entry.name for entry in entries(parent))


def entries(parent: Path) -> tuple[Path, ...]:
    """The complete entries of a folder, oldest first; none when there is no folder."""
    if not parent.is_dir():
        return ()
    return tuple(sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith(".")))
