"""Extract a model from a zip that may be hostile: only the files of a model, and never outside the folder."""

import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Final

from lib.errors import StorageError, WeightsError
from lib.files import CHUNK_BYTES, storage_errors

WANTED: Final = re.compile(r"plans\.json|dataset\.json|trust\.json|fold_(?:\d+|all)/checkpoint_(?:final|best)\.pth")
"""Files of a model folder; all others are not extracted."""
MAX_ENTRIES: Final = 10_000
"""A model zip has a few dozen files (including plots, logs and validation results)."""
MAX_TOTAL_BYTES: Final = 8 << 30
"""Bytes of the extracted files; two official checkpoints with their optimizer's state are well below."""
MAX_RATIO: Final = 200
"""Weights hardly compress (ratio 1.1), JSON about tenfold; zip bombs start at a thousand."""
RATIO_FROM_BYTES: Final = 1 << 20
"""Smaller files may compress as they like."""


def unpack_model(archive: Path, target: Path) -> tuple[Path, ...]:
    """Extract the model files of a zip.

    Args:
        archive: The zip.
        target: Existing folder to extract into.

    Returns:
        The files written, relative to ``target``.

    Raises:
        WeightsError: The zip is not readable, has no model, or has a link, a zip bomb, or an entry outside its folder.
        StorageError: The files cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            entries = content.infolist()
            _check(entries, archive.name)
            wanted = [entry for entry in entries if not entry.is_dir() and _is_wanted(entry.filename)]
            if not wanted:
                raise WeightsError(f"{archive.name!r} has no model folder (plans.json, fold_0/..).")
            require_space(sum(entry.file_size for entry in wanted), target)
            for entry in wanted:
                _extract(content, entry, target)
    except FileNotFoundError as error:
        raise WeightsError(f"The zip {str(archive)!r} does not exist.") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
        UnicodeError,
    ) as error:
        raise WeightsError(f"{archive.name!r} cannot be read as a zip ({error}). Download it again.") from error
    return tuple(Path(entry.filename) for entry in wanted)


def _check(entries: list[zipfile.ZipInfo], name: str) -> None:
    if len(entries) > MAX_ENTRIES:
        raise WeightsError(f"{name!r} has {len(entries)} entries, more than {MAX_ENTRIES}. It is no zip of a model.")
    if sum(entry.file_size for entry in entries if _is_wanted(entry.filename)) > MAX_TOTAL_BYTES:
        raise WeightsError(f"{name!r} unpacks to more than {MAX_TOTAL_BYTES >> 30} GiB. It is no zip of a model.")
    seen: set[str] = set()
    for entry in entries:
        problem = _problem(entry)
        if entry.filename in seen:
            problem = "twice"
        seen.add(entry.filename)
        if problem:
            raise WeightsError(f"{name!r} has the unsafe entry {entry.filename!r} ({problem}). Do not use it.")


def _problem(entry: zipfile.ZipInfo) -> str | None:
    path = PurePosixPath(entry.filename)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if path.is_absolute() or "\\" in entry.filename or ":" in entry.filename or "\0" in entry.orig_filename:
        return "absolute or not portable"
    if ".." in path.parts or not path.parts:
        return "climbs out of its folder"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or device"
    # Files that are not extracted may be denser, as logs and validation results are.
    dense = entry.file_size > RATIO_FROM_BYTES and entry.file_size > MAX_RATIO * max(1, entry.compress_size)
    if dense and _is_wanted(entry.filename):
        return "unpacks to far more than its size"
    return None


def _is_wanted(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "__MACOSX" not in parts and any(WANTED.fullmatch("/".join(parts[-n:])) for n in (1, 2))


def require_space(needed: int, folder: Path) -> None:
    """Check that a folder's disk has room.

    Args:
        needed: Bytes that will be written.
        folder: An existing folder.

    Raises:
        StorageError: There is too little room.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"There is too little disk space in {str(folder)!r}: {needed >> 20} MiB are needed and {free >> 20} MiB "
            "are free. Make room."
        )


def _extract(content: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    path = target.joinpath(*PurePosixPath(entry.filename).parts)
    written = 0
    with content.open(entry) as source, storage_errors(target):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as sink:
            while chunk := source.read(CHUNK_BYTES):
                written += len(chunk)
                if written > entry.file_size:
                    raise WeightsError(f"{entry.filename!r} in the zip is larger than the zip says. Do not use it.")
                sink.write(chunk)
