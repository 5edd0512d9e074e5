"""Write files and folders so that a crash at any moment leaves either the old or the new state; read JSON; hash files.

Records are read as dataclasses, including those that another version of this software wrote. Text is UTF-8 whatever the
locale is, because a native library may set the locale to "C" at any time.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from totalspineseg_server.errors import StorageError

T = TypeVar("T")

PARTIAL_PREFIX: Final = ".partial-"
"""Prefix of files and folders under construction; readers skip names with a leading dot."""
EARLIER_PREFIX: Final = ".staging-"
"""Prefix of folders under construction in earlier versions of this software."""
DAY_S: Final = 24 * 3600.0
"""Age above which a file under construction is assumed to belong to a killed process, seconds."""
CHUNK_BYTES: Final = 1 << 20
"""Number of bytes that are read at a time, if a file is not read at once."""
FULL_DISK: Final = (errno.ENOSPC, errno.EDQUOT)
RESTORE: Final = "Restore it from a backup."
CANNOT_SYNC: Final = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""Errors from file systems that cannot sync folders, such as some network shares."""


@contextmanager
def storage_errors(path: Path, *others: type[Exception]) -> Iterator[None]:
    """Turn the system's errors while writing into one sentence that names the file or folder.

    Args:
        path: The file or folder that is written. For a file in a folder under construction, the message names the final
            place of that folder.
        others: Errors that the writing library raises besides ``OSError``.

    Raises:
        StorageError: In place of these errors.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *others)
    try:
        yield
    except kinds as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: Exception) -> StorageError:
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        # While a folder was copied, each failed file was noted as (from, to, sentence).
        text = str(error.args[0][0][2])
        full = next((number for number in FULL_DISK if os.strerror(number) in text), None)
        error = OSError(full, os.strerror(full)) if full else OSError(None, text)
    partial = _folder_under_construction(path)
    place = repr(str(path if partial is None else partial.parent))
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return StorageError(f"The disk of {place} is full ({error.strerror}). Free disk space, and try again.")
    reason = getattr(error, "strerror", None) or type(error).__name__
    return StorageError(
        f"Cannot write to {place} ({reason}). Free disk space, or check its permissions, and try again."
    )


def _folder_under_construction(path: Path) -> Path | None:
    """Return the folder under construction in which a file is written, or None."""
    return next((folder for folder in (*reversed(path.parents), path) if folder.name.startswith(PARTIAL_PREFIX)), None)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file in one step: readers see either the old or the new content, even after a power cut.

    In a folder under construction nothing is synced to disk, because ``staged_folder`` does that once at the end.

    Args:
        path: The file; its folder must exist.
        write: Fills the temporary file that it gets, which is beside ``path`` and has the same ending.

    Raises:
        StorageError: The disk is full, permission is missing, or the file system failed; the old content is still
            there.
    """
    suffix = ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix
    temporary: Path | None = None
    try:
        # Native libraries may raise RuntimeError.
        with storage_errors(path, RuntimeError):
            descriptor, name = tempfile.mkstemp(prefix=PARTIAL_PREFIX, suffix=suffix, dir=path.parent)
            os.close(descriptor)
            temporary = Path(name)
            write(temporary)
            is_final = _folder_under_construction(path) is None
            if is_final:
                _sync_file(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
            if is_final:
                sync_folder(path.parent)
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step.

    Args:
        path: The file; its folder must exist.
        text: The text; line ends are not changed. Half a surrogate pair, as in undecodable file names, is escaped, so
            that JSON reads it back unchanged.

    Raises:
        StorageError: See ``write_file``.
    """
    write_file(path, lambda file: file.write_bytes(text.encode("utf-8", errors="backslashreplace")))


def write_json(
    path: Path, content: Any, *, default: Callable[[Any], Any] | None = None, allow_nan: bool = True
) -> None:
    """Replace a JSON file in one step; keys stay in their order.

    Args:
        path: The file; its folder must exist.
        content: Anything ``json`` can write. Not modified.
        default: See ``json.dumps``.
        allow_nan: See ``json.dumps``.

    Raises:
        StorageError: See ``write_file``.
        ValueError: There is a number that is not finite, although ``allow_nan`` is False.
    """
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, default=default, allow_nan=allow_nan) + "\n")


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file to another file, which is replaced in one step.

    Raises:
        StorageError: See ``write_file``; or ``source`` cannot be read.
    """
    write_file(target, lambda file: shutil.copyfile(source, file))


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file and sync it to disk; it begins a new line even if the last one was cut short.

    Raises:
        OSError: It cannot be written.
    """
    with path.open("ab+") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            # A line that a power cut left incomplete must not damage this line.
            stream.write(b"" if stream.read(1) == b"\n" else b"\n")
        stream.write(line.encode("utf-8", errors="backslashreplace") + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_json_lines(path: Path) -> list[Any]:
    """Return the JSON values of a file that has one in each line, without lines that a crash left incomplete.

    Raises:
        OSError: The file exists but cannot be read.
    """
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return found


def load_json(path: Path, remedy: str = RESTORE) -> Any:
    """Return the content of a JSON file.

    Args:
        path: The file.
        remedy: Sentence that says what to do if the file is damaged.

    Raises:
        StorageError: It is missing, damaged, or cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"The file {str(path)!r} is damaged or cannot be read ({reason}). {remedy}") from error


def read_json(path: Path, remedy: str = RESTORE) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: The file.
        remedy: Sentence that says what to do if the file is damaged.

    Raises:
        StorageError: The file is missing, damaged, cannot be read, or has something else in it.
    """
    content = load_json(path, remedy)
    if not isinstance(content, dict):
        raise StorageError(f"The file {str(path)!r} is damaged: it has no fields. {remedy}")
    return content


def read_json_if_there(path: Path, remedy: str = RESTORE) -> dict[str, Any]:
    """Return the JSON object in a file that will be written back; empty if there is no file.

    A file that cannot be read is an error, because writing over it would lose what it holds.

    Args:
        path: The file.
        remedy: Sentence that says what to do if the file is damaged.

    Raises:
        StorageError: The file is damaged, cannot be read, or has something else in it.
    """
    return read_json(path, remedy) if path.exists() else {}


def read_json_or(path: Path, otherwise: T) -> dict[str, Any] | T:
    """Return the JSON object in a file, or ``otherwise`` if there is none that can be read."""
    try:
        return read_json(path)
    except StorageError:
        return otherwise


def sha256_of(path: Path) -> str:
    """Return the SHA-256 (hex) of a file, or of all files of a folder (a DICOM series) in the order of their names.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


def content_key(content: Mapping[str, Any]) -> str:
    """Return a key for a run's content (parent, settings, cases); only a run with the same key is continued."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def partial_folder(parent: Path) -> Iterator[Path]:
    """Yield a new hidden folder, which is removed in the end unless it was moved.

    Remains of crashes in ``parent`` are also removed.

    Args:
        parent: Folder in which it is made; that folder is made as well if it is missing.

    Raises:
        StorageError: It cannot be made.
    """
    with storage_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(parent)
        folder = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=parent))
        folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield a hidden folder to fill, which becomes ``target`` when the block ends without an error.

    Args:
        target: Folder to create; it must not exist. Its parent is made if it is missing.

    Raises:
        StorageError: ``target`` exists, the disk is full, or the folder cannot be written.
    """
    with partial_folder(target.parent) as folder:
        yield folder
        with storage_errors(target):
            sync_tree(folder)
        move_folder(folder, target)


def move_folder(source: Path, target: Path) -> None:
    """Rename a folder in one step; even after a power cut it has either the old or the new name.

    Args:
        source: A folder whose files are synced.
        target: Its new place, which must not exist. The parent of that is made if it is missing.

    Raises:
        StorageError: ``target`` exists, or the folder cannot be moved; then it stays where it was.
    """
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(source)
        try:
            if target.exists():
                raise FileExistsError
            source.rename(target)
        except OSError as error:
            if not target.exists():
                raise
            raise StorageError(f"{target.name!r} exists already. Choose another name.") from error
        sync_folder(target.parent)
        if source.parent != target.parent:
            sync_folder(source.parent)


def sync_tree(folder: Path) -> None:
    """Sync everything inside a folder to disk.

    Raises:
        OSError: Something cannot be synced.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            _sync_file(path)
        elif path.is_dir():
            sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut, if the file system can do that.

    Raises:
        OSError: It cannot be synced.
    """
    if sys.platform == "win32":
        # Windows opens no folder as a file, and writes renames by itself.
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    # Windows syncs only files that are open for writing.
    with path.open("rb+" if sys.platform == "win32" else "rb") as stream:
        os.fsync(stream.fileno())


def remove_leftovers(folder: Path, older_than_s: float = DAY_S) -> None:
    """Remove incomplete files and folders that a crash left in a folder.

    Other processes may finish or remove theirs at the same time; files that cannot be removed stay.

    Args:
        folder: Folder to clean, without those below it.
        older_than_s: Files changed more recently may still be in use, and stay.
    """
    limit = time.time() - older_than_s
    for path in folder.glob(".*"):
        if path.name.startswith((PARTIAL_PREFIX, EARLIER_PREFIX)):
            with suppress(OSError):
                if path.stat().st_mtime >= limit:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def from_fields(kind: type[T], content: object, source: str) -> T:
    """Build a dataclass from a JSON object.

    Args:
        kind: A dataclass of JSON native values; its tuples are lists in JSON.
        content: The JSON value. Fields that ``kind`` does not have are ignored. Not modified.
        source: Name of its source, for the message.

    Raises:
        StorageError: It is not an object, lacks a field that has no default, or a value has another type.
    """
    if not isinstance(content, Mapping):
        raise StorageError(f"The record {source} is damaged: it holds no fields. Restore it from a backup.")
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    missing, wrong = [], []
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in content:
            value, hint = content[field.name], hints[field.name]
            if not _fits(value, hint):
                wrong.append(field.name)
            values[field.name] = tuple(value) if get_origin(hint) is tuple and not wrong else value
        elif field.default is MISSING and field.default_factory is MISSING:
            missing.append(field.name)
    if missing or wrong:
        faults = (("it lacks", missing), ("it has unusable values for", wrong))
        listed = " and ".join(f"{fault} {', '.join(names)}" for fault, names in faults if names)
        raise StorageError(f"The record {source} is damaged: {listed}. Restore it from a backup.")
    return kind(**values)


def _fits(value: object, hint: Any) -> bool:
    """Return whether a JSON value has the type of a field; the contents of collections are not checked."""
    origin, kinds = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, kind) for kind in kinds)
    if origin is Literal:
        return value in kinds
    if hint in (None, NoneType):
        return value is None
    base = origin or hint
    if issubclass(base, str):
        return isinstance(value, str)
    if issubclass(base, Mapping):
        return isinstance(value, Mapping)
    if issubclass(base, Sequence):
        return isinstance(value, Sequence) and not isinstance(value, str)
    if base in (int, float):
        return isinstance(value, int if base is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, base)
