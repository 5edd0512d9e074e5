"""Write files so that a crash at any moment leaves the old state or the new one, never a mixture."""

import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from lib.errors import BusyError, StorageError
from lib.leftovers import PARTIAL_PREFIX, remove_leftovers
from lib.processes import lock_holder

LOCK_FILE: Final = ".lock"
LOCK_SECONDS: Final = 60.0
"""Maximum time to wait for a lock. The work in a locked folder takes moments; if it takes longer, say so."""
LOOK_SECONDS: Final = 0.05


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step: readers see the old content or the new one.

    Args:
        path: File to write; its folder must exist.
        content: Anything ``json`` can write.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    with storage_errors(path.parent):
        descriptor, name = tempfile.mkstemp(prefix=PARTIAL_PREFIX, dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(content, stream, indent=2, sort_keys=True)
                stream.write("\n")
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def locked(folder: Path, *, seconds: float | None = None) -> Iterator[None]:
    """Let only one process at a time change a folder; a killed process leaves no lock behind.

    Args:
        folder: Folder to lock; made when missing.
        seconds: Maximum time to wait for another process; None for ``LOCK_SECONDS``.

    Raises:
        BusyError: Another process holds the lock for longer.
        StorageError: The folder cannot be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / LOCK_FILE).open("a")
    with stream:
        limit = LOCK_SECONDS if seconds is None else seconds
        with storage_errors(folder):
            taken = wait_for_lock(stream, limit)
        if not taken:
            raise BusyError(
                f"The folder {str(folder)!r} is locked: {lock_holder(folder / LOCK_FILE)} has held it for over "
                f"{limit:g} s. Wait until it is done, or end it, and try again."
            )
        yield


def wait_for_lock(stream: IO[str], seconds: float) -> bool:
    """Lock an open file for this process and those that inherit it; closing the file releases the lock.

    Args:
        stream: The file, open for writing.
        seconds: Maximum time to wait for another holder.

    Returns:
        Whether it is locked now; False when another holder kept it for longer.

    Raises:
        OSError: The file system does not support locks.
    """
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
def staged_folder(target: Path) -> Iterator[Path]:
    """Build a folder that appears complete: yield a hidden sibling, which becomes ``target`` when the block succeeds.

    Args:
        target: Folder to create; must not exist.

    Raises:
        StorageError: ``target`` exists, the disk is full, or the parent cannot be written.
    """
    with storage_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent)
        staging = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=target.parent))
    try:
        yield staging
        with storage_errors(target.parent):
            _sync_tree(staging)
            staging.chmod(0o755)
            try:
                if target.exists():
                    raise FileExistsError
                staging.rename(target)
            except OSError as error:
                if not target.exists():
                    raise
                raise StorageError(f"{target.name!r} exists already. Choose another name.") from error
            sync_folder(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn the system's errors while writing into one sentence.

    Raises:
        StorageError: In place of any ``OSError``.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"The disk of {str(folder)!r} is full. Free disk space.") from error
        reason = error.strerror or type(error).__name__
        raise StorageError(f"Cannot write to the folder {str(folder)!r} ({reason}). Check its permissions.") from error


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        else:
            sync_folder(path)
    sync_folder(folder)
