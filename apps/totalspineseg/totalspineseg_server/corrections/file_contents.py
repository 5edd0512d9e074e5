"""Remember hashes of files, and values read from files; a file is read again only if it has changed."""

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Generic, TypeVar

from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import read_json_or, sha256_of, write_json
from totalspineseg_server.locks import NamedLocks

logger = logging.getLogger(__name__)

T = TypeVar("T")
Stamp = tuple[int, int, int]

SETTLED_NS: Final = 2_000_000_000
"""Age of the last change of a file, ns, from which another change would give the file another time. File systems count
in milliseconds, some in seconds."""
SAVE_SECONDS: Final = 60.0
"""Shortest time between two writes of the hashes, because the file has a line for every image."""


def stamp_of(path: Path) -> Stamp | None:
    """Return a value that changes with a file, or with the names in a folder; zeros if there is nothing.

    Returns:
        None if the last change is so recent that another one might not be noticed.
    """
    try:
        stat = path.stat()
    except OSError:
        return 0, 0, 0
    is_settled = time.time_ns() - stat.st_mtime_ns > SETTLED_NS
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns) if is_settled else None


class Remembered(Generic[T]):
    """Values that were read from files or folders; a value is read again if one of these has changed."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[tuple[Stamp | None, ...], T]] = {}

    def value(self, key: Hashable, paths: Sequence[Path], read: Callable[[], T]) -> T:
        """Return the value of a key.

        Args:
            key: Its key.
            paths: The files and folders that it depends on; they need not exist.
            read: Called if the value is not known, or if one of the files has changed.
        """
        states = tuple(stamp_of(path) for path in paths)
        known = self._known.get(key)
        if known is not None and known[0] == states and None not in states:
            return known[1]
        value = read()
        self._known[key] = states, value
        return value


class ContentHashes:
    """The SHA-256 of files; a file is read only if its size or time has changed.

    Args:
        file: File that stores the hashes for the next start; it may be deleted.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, tuple[int, int, str]] = {}
        self._reading = NamedLocks()
        self._saved_at = -SAVE_SECONDS
        for path, known in read_json_or(file, {}).items():
            with suppress(TypeError, ValueError):
                size, time_ns, sha256 = known
                self._known[path] = int(size), int(time_ns), str(sha256)

    def learn(self, path: Path, size: int, time_ns: int, sha256: str) -> None:
        """Store the hash that a file had at a time, unless a hash is known already."""
        self._known.setdefault(str(path), (size, time_ns, sha256))

    def is_content(self, path: Path, sha256: str) -> bool:
        """Return whether a file has this content.

        Raises:
            OSError: It cannot be read.
        """
        stat, known = path.stat(), self._known.get(str(path))
        if known is not None and known[:2] == (stat.st_size, stat.st_mtime_ns):
            return known[2] == sha256
        # A file of another size has other content.
        if known is not None and known[2] == sha256 and known[0] != stat.st_size:
            return False
        return self.of(path) == sha256

    def of(self, path: Path) -> str:
        """Return the hash of a file's content.

        Raises:
            OSError: It cannot be read.
        """
        # Many requests may ask at once; those that waited find what the first one has read.
        with self._reading.of(str(path)):
            stat = path.stat()
            size, time_ns, sha256 = self._known.get(str(path), (-1, 0, ""))
            if (size, time_ns) != (stat.st_size, stat.st_mtime_ns):
                sha256 = sha256_of(path)
                self._known[str(path)] = stat.st_size, stat.st_mtime_ns, sha256
                self._save()
        return sha256

    def _save(self) -> None:
        now = time.monotonic()
        if now - self._saved_at < SAVE_SECONDS or not self._file.parent.is_dir():
            return
        self._saved_at = now
        try:
            write_json(self._file, dict(self._known))
        except StorageError as error:
            logger.warning("The server will read the images again after its next start: %s", error)
