"""By what a scan's files are known again: whether they were replaced, and whether other files are the same ones."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lib.volume_io import stem

HEADER_SUFFIXES: Final = (".nhdr", ".mhd")
"""Headers of images whose voxels lie in a file of their own."""
PLACES: Final = 16
"""Of so many files of a series, and at so many places of each, a piece is compared .."""
PLACE_BYTES: Final = 4096
""".. of this length."""
HASH_LENGTH: Final = 16


def stamp(path: Path | None) -> dict[str, int | str] | None:
    """Changes when a scan's file, or a file of its series, is replaced: files, bytes, latest change (ns), content.

    Of the content some places are read: the files of one protocol may be equally long, and equally old in an archive.
    """
    if path is None:
        return None
    files = _files_of(path)
    stats = [file.stat() for file in files]
    size, changed = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
    return {"files": len(files), "bytes": size, "changed": changed, "content": _content(files)}


def same_content(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether two stamps are of the same files, wherever they lie and whenever they were copied."""
    return {**(one or {}), "changed": 0} == {**(other or {}), "changed": 0}


def _content(files: Sequence[Path]) -> str:
    """A hash of some places of some of the files."""
    places = hashlib.sha256()
    for file in files[:: max(1, len(files) // PLACES)]:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            for place in range(PLACES):
                stream.seek(size * place // PLACES)
                places.update(stream.read(PLACE_BYTES))
    return places.hexdigest()[:HASH_LENGTH]


def _files_of(path: Path) -> list[Path]:
    """The files of a series; an image file, with what lies beside a header whose voxels are in another, by its name.

    Empty where there is none, or it may not be read: then the scan fails.
    """
    try:
        if path.is_dir():
            files = [p for p in sorted(path.iterdir()) if p.is_file()]
        elif path.name.lower().endswith(HEADER_SUFFIXES):
            files = [p for p in sorted(path.parent.iterdir()) if p.is_file() and p.name.startswith(f"{stem(path)}.")]
        else:
            files = [path]
    except PermissionError:
        return []
    return [file for file in files if file.is_file() and os.access(file, os.R_OK)]
