"""Taking the files of a series out of a .zip that may be hostile: bounded in size and number, all in one folder."""

import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import IO, Final

from fastapi import HTTPException

from lib.corrections.history import CHUNK_BYTES
from lib.front.errors import DISK_ERRORS
from lib.front.statuses import TOO_LARGE
from lib.front.uploads import plain_name
from lib.infers.http import NO_ROOM, UNUSABLE

MAX_ENTRIES: Final = 10_000
"""A whole spine of thin slices is 500 files."""
MAX_READ_BYTES: Final = 512 * MAX_ENTRIES
"""Of the archive at once. The list of entries comes in one piece, and an entry takes some 100 bytes of it."""
KINDS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Other ways to compress cannot be unpacked piece by piece: a small piece may fill the memory."""
REGULAR: Final = (0, stat.S_IFREG, stat.S_IFDIR)
"""Types of entries; 0 is not stated."""
UNREADABLE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)


def unpack_series(archive: IO[bytes], folder: Path, *, max_bytes: int) -> Path:
    """Write the files of an archive into a folder, without the archive's own folders and hidden files.

    Args:
        archive: The .zip; it can be sought in.
        folder: Empty folder. What a refused archive may have left there is the caller's to remove.
        max_bytes: How much all files may hold together.

    Returns:
        The file, or the folder when there are several.

    Raises:
        HTTPException: No readable .zip, or one with too much, too many or unsafe entries, or none; nearly always before
            anything is written. Or the disk has no room.
    """
    try:
        with zipfile.ZipFile(_Bounded(archive)) as content:
            entries = content.infolist()
            _check(entries, max_bytes)
            files = [entry for entry in entries if _is_wanted(entry)]
            if not files:
                raise HTTPException(UNUSABLE, "a .zip with the files of one series is required, got none in it")
            _require_room(sum(entry.file_size for entry in files), folder)
            for number, entry in enumerate(files):
                name = plain_name(entry.filename) or "image"
                path = folder / (name if len(files) == 1 else f"{number:05d}-{name}")
                with content.open(entry) as source, path.open("xb") as target:
                    shutil.copyfileobj(source, target, CHUNK_BYTES)
    except UNREADABLE as error:
        raise _unreadable() from error
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise
        raise _unreadable() from error
    return path if len(files) == 1 else folder


class _Bounded:
    """A file that is not read far at once: ``zipfile`` takes a list of entries into memory, however long it is."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(MAX_READ_BYTES + 1 if size < 0 else min(size, MAX_READ_BYTES + 1))
        if len(data) > MAX_READ_BYTES:
            raise _too_many()
        return data


def _check(entries: Sequence[zipfile.ZipInfo], max_bytes: int) -> None:
    if len(entries) > MAX_ENTRIES:
        raise _too_many()
    # zipfile reads no more of an entry than it states.
    if sum(entry.file_size for entry in entries) > max_bytes:
        raise HTTPException(
            TOO_LARGE,
            f"a .zip that unpacks to at most {max_bytes / 2**20:g} MiB is required, got more; send fewer files, or "
            "raise --max-upload-mb",
        )
    for entry in entries:
        if problem := _problem(entry):
            raise HTTPException(
                UNUSABLE,
                f"a .zip of plain files inside it is required, got {entry.filename[:80]!r} ({problem}); "
                "pack the series anew",
            )


def _problem(entry: zipfile.ZipInfo) -> str:
    path = PureWindowsPath(entry.filename)
    if not entry.filename:
        return "has no name"
    if path.drive or path.root or ".." in path.parts:
        return "leaves its folder"
    if stat.S_IFMT(entry.external_attr >> 16) not in REGULAR:
        return "a link or device"
    return "" if entry.compress_type in KINDS else "neither stored nor deflated"


def _is_wanted(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry is a file of the series, and no folder nor what a system keeps beside files."""
    return not entry.is_dir() and not PureWindowsPath(entry.filename).name.startswith(".")


def _require_room(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise HTTPException(
            NO_ROOM, f"{needed >> 20} MiB of the server's disk are required, got {free >> 20} MiB; free space"
        )


def _too_many() -> HTTPException:
    return HTTPException(
        TOO_LARGE, f"a .zip of at most {MAX_ENTRIES} entries is required, got more; send the files of one series"
    )


def _unreadable() -> HTTPException:
    return HTTPException(UNUSABLE, "a readable .zip without a password is required, got another file; pack it anew")
