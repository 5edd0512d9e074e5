"""Fingerprint a scan's files, to find out whether they were replaced, and whether other files are the same."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from totalspineseg_server.io.volumes import stem

HEADER_SUFFIXES: Final = (".nhdr", ".mhd")
"""Endings of image headers whose voxels are in a separate file."""
PLACES: Final = 16
"""Number of files of a series that are compared, and of positions in each file."""
PLACE_BYTES: Final = 4096
"""Number of bytes that are compared at each position."""
HASH_LENGTH: Final = 16


def fingerprint(path: Path | None) -> dict[str, int | str] | None:
    """Return a fingerprint of a scan's files: their number, size, latest change (ns), and a hash of parts of their
    content.

    The content is needed because files of one protocol may have the same length and, in an archive, the same date.
    """
    if path is None:
        return None
    files = _files_of(path)
    stats = [file.stat() for file in files]
    size, changed = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
    return {"files": len(files), "bytes": size, "changed": changed, "content": _content(files)}


def same_content(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Return whether two fingerprints belong to the same files, wherever these are and whenever they were copied."""
    return {**(one or {}), "changed": 0} == {**(other or {}), "changed": 0}


def _content(files: Sequence[Path]) -> str:
    """Return a hash of some positions of some of the files."""
    places = hashlib.sha256()
    for file in files[:: max(1, len(files) // PLACES)]:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            for place in range(PLACES):
                stream.seek(size * place // PLACES)
                places.update(stream.read(PLACE_BYTES))
    return places.hexdigest()[:HASH_LENGTH]


def _files_of(path: Path) -> list[Path]:
    """Return the files of a series, or an image file; for a header, also the files beside it with the same name.

    The list is empty if there is none, or if it may not be read; then the scan fails.
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
