"""Lock files between processes, and names within a process, so that only one at a time does something."""

import asyncio
import fcntl
import os
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


@contextmanager
def file_lock(file: Path, seconds: float) -> Iterator[IO[str] | None]:
    """Hold a lock on a file (``flock``) against other threads and processes; a killed process leaves none behind.

    Args:
        file: The file that is locked; it and its folder are made if they are missing.
        seconds: Longest time to wait for another holder; ``math.inf`` for no limit.

    Yields:
        The open file (a process that inherits it holds the lock, too), or None if another holder kept the lock for
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
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    """Return whether somebody holds the lock on a file. Nothing is made, and several threads may ask at once."""
    if not file.exists():
        return False
    with file.open("a", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
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


POLL_SECONDS: Final = 0.1


class Ongoing:
    """Counts the submissions in progress in all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one more submission while this block runs."""
        with self._lock:
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1

    async def finish(self, seconds: float) -> bool:
        """Wait until no submission is in progress, but no longer than these seconds.

        Returns:
            Whether none is in progress.
        """
        deadline = time.monotonic() + seconds
        while self._count and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        return not self._count
