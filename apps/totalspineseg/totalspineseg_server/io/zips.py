"""Open a .zip that may be hostile: size and number of entries are limited, links and paths outside the folder
refused."""

import errno
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import IO, Final

from totalspineseg_server.errors import ArchiveError, StorageError, TooLargeError, TotalSpineSegError
from totalspineseg_server.files import CHUNK_BYTES
from totalspineseg_server.io import io_messages

MAX_ENTRIES: Final = 10_000
"""Largest number of entries. A whole spine of thin slices is 500 files, a model a few dozen."""
BYTES_PER_ENTRY: Final = 512
"""Largest number of bytes per entry that are read at once. zipfile reads the list of entries in one piece, about 100
bytes for each.
"""
MAX_RATIO: Final = 200
"""Largest compression of a model's file. Weights hardly compress, JSON some tenfold; zip bombs start at a thousand."""
RATIO_FROM_BYTES: Final = 1 << 20
"""Smallest size of a file whose compression is checked."""
KINDS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Allowed ways to compress. Others cannot be unpacked piece by piece, and a small piece may fill the memory."""
REGULAR: Final = (0, stat.S_IFREG, stat.S_IFDIR)
"""Allowed types of entries; 0 means that none is stated."""
UNREADABLE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    ValueError,
)


class Archive:
    """An open .zip that passed the checks.

    Attributes:
        entries: The wanted files in it.
        by_name: Name -> wanted file.
    """

    def __init__(self, content: zipfile.ZipFile, entries: Sequence[zipfile.ZipInfo]) -> None:
        self._content = content
        self.entries = tuple(entries)
        self.by_name = {entry.filename: entry for entry in self.entries}

    def extract(self, entry: zipfile.ZipInfo, path: Path) -> None:
        """Write an entry to a file that does not exist yet; zipfile never reads more of it than it states."""
        with path.open("xb") as target:
            self.copy(entry, target.write)

    def copy(self, entry: zipfile.ZipInfo, write: Callable[[bytes], object]) -> None:
        """Pass the content of an entry on, piece by piece."""
        with self._content.open(entry) as source:
            while piece := source.read(CHUNK_BYTES):
                write(piece)


@contextmanager
def open_archive(
    file: IO[bytes],
    folder: Path,
    *,
    is_wanted: Callable[[str], bool],
    max_bytes: int,
    max_ratio: float = 0,
    max_entries: int | None = None,
) -> Iterator[Archive]:
    """Open a .zip to write files of it into a folder.

    Args:
        file: The .zip; it must be seekable.
        folder: Existing folder. If an archive is refused, the caller removes the files written so far.
        is_wanted: ``is_wanted(name)`` returns whether a file is to be written; all others stay in the archive.
        max_bytes: Largest size of the wanted files together.
        max_ratio: Largest compression of a wanted file; 0 for any.
        max_entries: Largest number of entries; None for ``MAX_ENTRIES``.

    Yields:
        The archive, which has at least one wanted file.

    Raises:
        ArchiveError: It is not a readable .zip, or has unsafe or no wanted entries; this is nearly always found before
            anything is written.
        TooLargeError: It has too many entries, or unpacks to too much.
        StorageError: The disk has too little room.
    """
    most = MAX_ENTRIES if max_entries is None else max_entries
    try:
        with zipfile.ZipFile(_Bounded(file, most)) as content:
            entries = content.infolist()
            if len(entries) > most:
                raise _too_many(most)
            files = (entry for entry in entries if entry.filename and not entry.is_dir())
            wanted = [entry for entry in files if is_wanted(entry.filename)]
            # zipfile never reads more of an entry than the entry states.
            total = sum(entry.file_size for entry in wanted)
            if total > max_bytes:
                raise TooLargeError(io_messages.ZIP_TOO_LARGE.format(limit=max_bytes / 2**20))
            _require_safe(entries, wanted, max_ratio)
            if not wanted:
                raise ArchiveError(io_messages.NOTHING_NEEDED)
            require_space(total, folder)
            yield Archive(content, wanted)
    except TotalSpineSegError:
        raise
    except UNREADABLE as error:
        raise _unreadable() from error
    except OSError as error:
        # This error comes from a seek before the beginning of the file; others come from the disk.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise _unreadable() from error


class _Bounded:
    """A file that limits each read: ``zipfile`` loads a list of entries into memory, however long it is."""

    def __init__(self, file: IO[bytes], max_entries: int) -> None:
        self._file, self._max_entries = file, max_entries
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        most = BYTES_PER_ENTRY * self._max_entries
        data = self._file.read(most + 1 if size < 0 else min(size, most + 1))
        if len(data) > most:
            raise _too_many(self._max_entries)
        return data


def _require_safe(entries: Sequence[zipfile.ZipInfo], wanted: Sequence[zipfile.ZipInfo], max_ratio: float) -> None:
    names: set[str] = set()
    chosen = {entry.filename for entry in wanted}
    for entry in entries:
        problem = "occurs twice" if entry.filename in names else _problem(entry)
        if entry.filename in chosen and _is_dense(entry, max_ratio):
            problem = io_messages.EXPANDS
        if problem:
            raise ArchiveError(io_messages.UNSAFE_ENTRY.format(name=entry.filename[:80], problem=problem))
        names.add(entry.filename)


def _problem(entry: zipfile.ZipInfo) -> str:
    path = PureWindowsPath(entry.filename)
    if not entry.filename:
        return "has no name"
    if path.drive or path.root or ".." in path.parts:
        return "leaves its folder"
    if stat.S_IFMT(entry.external_attr >> 16) not in REGULAR:
        return io_messages.LINK_OR_DEVICE
    return "" if entry.compress_type in KINDS else io_messages.OTHER_COMPRESSION


def _is_dense(entry: zipfile.ZipInfo, max_ratio: float) -> bool:
    limit = max_ratio * max(1, entry.compress_size)
    return bool(max_ratio) and entry.file_size > max(RATIO_FROM_BYTES, limit)


def require_space(needed: int, folder: Path) -> None:
    """Check that a folder's disk has room.

    Args:
        needed: Bytes that will be written.
        folder: An existing folder.

    Raises:
        StorageError: There is too little.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(io_messages.NO_DISK_SPACE.format(folder=str(folder), needed=needed >> 20, free=free >> 20))


def _too_many(most: int) -> TooLargeError:
    return TooLargeError(io_messages.TOO_MANY_ENTRIES.format(most=most))


def _unreadable() -> ArchiveError:
    return ArchiveError(io_messages.UNREADABLE_ZIP)
