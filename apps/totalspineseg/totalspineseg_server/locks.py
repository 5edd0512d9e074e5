"""Lock files against other processes, and names against other threads."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final
from weakref import WeakValueDictionary

from totalspineseg_server.errors import BusyError
from totalspineseg_server.files import storage_errors

LOCK_FILE: Final = ".lock"
LOCK_SECONDS: Final = 60.0
"""Longest time to wait for a lock, seconds. The work in a locked folder takes moments; if it takes longer, users are
told."""
LOOK_SECONDS: Final = 0.05
LOCKS: Final = Path("/proc/locks")

if sys.platform == "win32":
    import msvcrt

    LOCKED_BYTE: Final = 1 << 30
    """Byte that stands for the file: Windows locks ranges of bytes, even far beyond the end."""

    def _take(stream: IO[str], *, shared: bool) -> None:
        """Lock an open file; Windows has no lock that several can share, and a child process does not inherit it.

        Raises:
            BlockingIOError: Another one holds the lock.
        """
        os.lseek(stream.fileno(), LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(error.errno, error.strerror) from error
else:
    import fcntl

    def _take(stream: IO[str], *, shared: bool) -> None:
        """Lock an open file, alone or with others that share it.

        Raises:
            BlockingIOError: Another one holds the lock.
        """
        fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


@contextmanager
def file_lock(file: Path, seconds: float) -> Iterator[IO[str] | None]:
    """Hold a lock on a file against other threads and processes; a killed process leaves none behind.

    Args:
        file: The file that is locked; it and its folder are made if they are missing.
        seconds: Longest time to wait for another holder; ``math.inf`` for no limit.

    Yields:
        The open file (a process that inherits it also holds the lock), or None if another holder kept the lock for
        longer.

    Raises:
        StorageError: The file cannot be written, or its file system does not support locks.
    """
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("a", encoding="utf-8")
    with stream:
        with storage_errors(file):
            is_held = _wait(stream, seconds)
        yield stream if is_held else None


def _wait(stream: IO[str], seconds: float) -> bool:
    """Lock an open file; return False if another holder kept it for longer."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            _take(stream, shared=False)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_SECONDS)
        else:
            return True


@contextmanager
def locked(folder: Path, *, seconds: float | None = None) -> Iterator[None]:
    """Let only one process at a time change a folder.

    Args:
        folder: Folder to lock; it is made if it is missing.
        seconds: Longest time to wait for another process; None for ``LOCK_SECONDS``.

    Raises:
        BusyError: Another process holds the lock for longer.
        StorageError: The folder cannot be written.
    """
    file, limit = folder / LOCK_FILE, LOCK_SECONDS if seconds is None else seconds
    with file_lock(file, limit) as stream:
        if stream is None:
            raise BusyError(
                f"The folder {str(folder)!r} is locked: {lock_holder(file)} has held it for over {limit:g} s. Wait "
                "until it is done, or end it, and try again."
            )
        yield


def is_locked(file: Path) -> bool:
    """Return whether somebody holds the lock on a file. No file is made, and several threads may ask at once."""
    if not file.exists():
        return False
    with file.open("a", encoding="utf-8") as stream:
        try:
            _take(stream, shared=True)
        except OSError:
            return True
    return False


def lock_holder(file: Path) -> str:
    """Return a description of the holder of a lock on a file; Linux knows only processes on this machine."""
    try:
        inode = file.stat().st_ino
        held = [line.split() for line in LOCKS.read_text(encoding="utf-8").splitlines() if "->" not in line]
    except OSError:
        held = []
    # Fields: number, kind, mode, access, process, device and inode.
    processes = {int(words[4]) for words in held if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode)}
    if os.getpid() in processes:
        return "another request to this process"
    return f"process {min(processes)}" if processes else "another program, perhaps on another machine"


class NamedLocks:
    """A lock for every name: one thread at a time for each name, all names at the same time.

    A lock is removed with the last thread that holds it or waits for it.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()

    def of(self, name: str) -> threading.Lock:
        """Return the lock of a name, for a ``with`` statement."""
        with self._guard:
            return self._locks.setdefault(name, threading.Lock())
