"""Describe the structures and levels of a finished scan in its record, and find, read and remove it."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np

from totalspineseg_server.agreement import MIN_MM3
from totalspineseg_server.anatomy import BACKGROUND, SACRUM, STRUCTURES, Kind
from totalspineseg_server.cohort.outputs import REPORTS
from totalspineseg_server.files import read_json_or, storage_errors
from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.segments import VERTEBRAE_NAME
from totalspineseg_server.transforms.pieces import Step


def record_path(output: Path, name: str) -> Path:
    """Return the path of a scan's record, which exists only once everything else of the scan is written."""
    return output / REPORTS / f"{name}.json"


def read_record(output: Path, name: str) -> dict[str, Any] | None:
    """Return the record of a scan; None if it is missing or unreadable (the scan is then processed again)."""
    return read_json_or(record_path(output, name), None)


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
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


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
