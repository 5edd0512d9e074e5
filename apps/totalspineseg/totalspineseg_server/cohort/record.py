"""Describe a finished scan (its files, structures and levels) in its record, and find, read and remove it."""

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from totalspineseg_server.agreement import MIN_MM3
from totalspineseg_server.anatomy import BACKGROUND, SACRUM, STRUCTURES, Kind
from totalspineseg_server.cohort.outputs import REPORTS
from totalspineseg_server.files import read_json_or, storage_errors
from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.io.volumes import HEADER_SUFFIXES, stem
from totalspineseg_server.segments import VERTEBRAE_NAME
from totalspineseg_server.transforms.pieces import Step
from totalspineseg_server.version import installed_versions

PLACES: Final = 16
"""Number of files of a series that are compared, and of positions in each file."""
PLACE_BYTES: Final = 4096
"""Number of bytes that are compared at each position."""
HASH_LENGTH: Final = 16
DAMAGED: Final = ".damaged"
"""Ending that is added to the name of a record that cannot be read."""


def record_path(output: Path, name: str) -> Path:
    """Return the path of a scan's record, which exists only once everything else of the scan is written."""
    return output / REPORTS / f"{name}.json"


def read_record(output: Path, name: str) -> dict[str, Any] | None:
    """Return the record of a scan; None if it is missing or unreadable (the scan is then processed again)."""
    return read_json_or(record_path(output, name), None)


def set_damaged_aside(output: Path, name: str) -> Path | None:
    """Rename the record of a scan if it cannot be read.

    Returns:
        The renamed file; None if there is no record, or one that can be read.

    Raises:
        StorageError: It cannot be renamed.
    """
    path = record_path(output, name)
    if not path.is_file() or read_record(output, name) is not None:
        return None
    aside = path.with_name(f"{path.name}{DAMAGED}")
    with storage_errors(path):
        path.replace(aside)
    return aside


def remove_record(output: Path, name: str) -> None:
    """Mark a scan as unfinished before its files are replaced.

    Raises:
        StorageError: The record cannot be removed.
    """
    with storage_errors(record_path(output, name)):
        record_path(output, name).unlink(missing_ok=True)


PACKAGES: Final = ("torch", "numpy", "scipy", "nibabel", "SimpleITK", "connected-components-3d", "nnunetv2")


def software_versions() -> dict[str, str]:
    """Return name -> version of the software that affects results, without packages that are not installed."""
    return {"platform": platform.platform(), **installed_versions(PACKAGES)}


def structures_json(labels: LabelArray, spacing: tuple[float, float, float], *, step: Step) -> list[dict[str, Any]]:
    """Return every structure in a label map with its volume.

    Args:
        labels: Codes. Not modified.
        spacing: Voxel size, mm.
        step: Step that made the map; in step 1 the sacrum's code stands for all vertebrae but C1.

    Returns:
        One ``{"code", "name", "kind", "volume_ml"}`` for each structure, in the order of the label table.
    """
    counts = np.bincount(labels.ravel(order="K"), minlength=256)
    voxel_ml = float(np.prod(spacing)) / 1000
    found = [
        {"code": s.code, "name": s.name, "kind": s.kind.value, "volume_ml": round(float(counts[s.code]) * voxel_ml, 3)}
        for s in STRUCTURES
        if counts[s.code] and s.code != BACKGROUND
    ]
    together = {"name": VERTEBRAE_NAME, "kind": VERTEBRAE_NAME}
    return [row | together if step == 1 and row["code"] == SACRUM else row for row in found]


def levels_in_view(structures: list[dict[str, Any]], *, step: Step) -> str:
    """Return the first and last level in view, such as "T11 - sacrum".

    Args:
        structures: From ``structures_json``. A structure of less than ``MIN_MM3`` is a speck or the edge of a level and
            is ignored.
        step: In step 2 the levels are vertebrae; in step 1, or if there are none, they are discs.

    Returns:
        "L4" for a single level, "" for none.
    """
    bones = {kind.value for kind in (Kind.VERTEBRA, Kind.SACRUM)} if step == 2 else set()
    large = [row for row in structures if row["volume_ml"] * 1000 >= MIN_MM3]
    names = [row["name"] for row in large if row["kind"] in bones]
    names = names or [row["name"] for row in large if row["kind"] == Kind.DISC.value]
    if not names:
        return ""
    return names[0] if len(names) == 1 else f"{names[0]} - {names[-1]}"


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
