"""Unpack the files of a series from a .zip that may be hostile: limited in size and number, all into one folder."""

import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import IO, Final

from fastapi import HTTPException

from lib.files import CHUNK_BYTES
from lib.front.errors import DISK_ERRORS
from lib.front.statuses import TOO_LARGE
from lib.front.uploads import plain_name
from lib.infers.http import NO_ROOM, UNUSABLE

MAX_ENTRIES: Final = 10_000
"""Maximum number of entries. A whole spine of thin slices is 500 files."""
MAX_READ_BYTES: Final = 512 * MAX_ENTRIES
"""Maximum bytes read at once. zipfile reads the list of entries in one piece, about 100 bytes for each entry."""
KINDS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Allowed ways to compress. Others cannot be unpacked piece by piece, so that a small piece may fill the memory."""
REGULAR: Final = (0, stat.S_IFREG, stat.S_IFDIR)
"""Allowed types of entries; 0 means that none is stated."""
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
        archive: The .zip; it must be seekable.
        folder: Empty folder. When an archive is refused, the caller removes what it left there.
        max_bytes: Maximum size of all files together.

    Returns:
        The file, or the folder when there are several.

    Raises:
        HTTPException: The archive is not a readable .zip, holds too much, too many, unsafe or no entries (nearly always
            found before anything is written), or the disk is full.
    """
    try:
        with zipfile.ZipFile(_Bounded(archive)) as content:
            entries = content.infolist()
            _check(entries, max_bytes)
            files = [entry for entry in entries if _is_wanted(entry)]
            if not files:
                raise HTTPException(UNUSABLE, "The .zip contains no files. Send a .zip with the files of one series.")
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
    """A file that limits each read: ``zipfile`` loads a list of entries into memory, however long it is."""

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
    # zipfile never reads more of an entry than the entry states.
    if sum(entry.file_size for entry in entries) > max_bytes:
        raise HTTPException(
            TOO_LARGE,
            f"The .zip unpacks to more than {max_bytes / 2**20:g} MiB. Send fewer files, or raise --max-upload-mb.",
        )
    for entry in entries:
        if problem := _problem(entry):
            raise HTTPException(
                UNUSABLE,
                f"The .zip holds an unsafe entry: {entry.filename[:80]!r} {problem}. Pack the files of the series "
                "again.",
            )


def _problem(entry: zipfile.ZipInfo) -> str:
    path = PureWindowsPath(entry.filename)
    if not entry.filename:
        return "has no name"
    if path.drive or path.root or ".." in path.parts:
        return "leaves its folder"
    if stat.S_IFMT(entry.external_attr >> 16) not in REGULAR:
        return "is a link or device"
    return "" if entry.compress_type in KINDS else "is neither stored nor deflated"


def _is_wanted(entry: zipfile.ZipInfo) -> bool:
    """Return whether an entry is a file of the series, not a folder or a hidden file of an operating system."""
    return not entry.is_dir() and not PureWindowsPath(entry.filename).name.startswith(".")


def _require_room(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise HTTPException(
            NO_ROOM,
            f"The server's disk is full: the series needs {needed >> 20} MiB, {free >> 20} MiB are free. Free "
            "space and try again.",
        )


def _too_many() -> HTTPException:
    return HTTPException(TOO_LARGE, f"The .zip has more than {MAX_ENTRIES} entries. Send the files of one series.")


def _unreadable() -> HTTPException:
    return HTTPException(UNUSABLE, "This is not a readable .zip without a password. Pack the series again.")
