"""One point per disc, in the spinal cord toolbox's disc convention."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from lib.anatomy import C1, CANAL, CORD, DISC_C2_C3, DISCS, LEVEL_POINT, POINT_C1_C2, POINT_C1_TOP, SACRUM
from lib.transforms.centerline import smooth_centerline
from lib.transforms.components import Labels

MIN_C1_VOXELS: Final = 500
"""C1 counts as seen with more voxels than this (mm3 at 1 mm)."""

Points = npt.NDArray[np.float64]


def _disc_values(codes: Sequence[int]) -> list[int]:
    """Values of the discs present: the first one's own, then counting on."""
    if not codes:
        return []
    above = [LEVEL_POINT[code] for code in DISCS[: DISCS.index(codes[0])] if code in LEVEL_POINT]
    first = LEVEL_POINT.get(codes[0], max(above, default=0) + 1)
    return list(range(first, first + len(codes)))


def _nearest_voxel(voxels: npt.NDArray[np.intp], tree: cKDTree, spacing: Points) -> npt.NDArray[np.intp]:
    distances, _ = tree.query(voxels * spacing)
    return np.asarray(voxels[int(np.argmin(distances))])


def _upper_points(labels: Labels, c2_c3: npt.NDArray[np.intp], line: Points, spacing: Points) -> dict[int, Points]:
    """Points 1 and 2, above the C2-C3 disc; empty where C1 or vertebrae are missing."""
    c1 = labels == C1
    if np.count_nonzero(c1) <= MIN_C1_VOXELS:
        return {}
    c1_top = int(np.flatnonzero(c1.any(axis=(0, 1)))[-1])
    vertebra = np.argwhere(labels[c2_c3[0], :, :c1_top] == SACRUM)
    if len(vertebra) == 0:
        return {}
    y, z = vertebra[np.argmax(vertebra[:, 1])]
    top = np.array([c2_c3[0], y, z])
    middle = (top + c2_c3) // 2
    at = np.argmin((((line - c2_c3) * spacing) ** 2).sum(axis=1))
    shifted = line + [c2_c3[0] - line[at, 0], c2_c3[1] - line[at, 1], 0.0]
    tree = cKDTree(shifted * spacing)
    moved = {value: tree.query(p * spacing)[1] for value, p in ((POINT_C1_TOP, top), (POINT_C1_C2, middle))}
    return {value: shifted[row] for value, row in moved.items()}


def level_points(labels: Labels, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Labels:
    """Mark every disc by its voxel nearest to the canal, and the two levels above C2-C3.

    Args:
        labels: uint8 (X, Y, Z) RAS, the step-1 result in output codes. Not modified.
        spacing: Voxel size, mm.

    Returns:
        A new uint8 map with one voxel per level: 3 for C2-C3, 4 for C3-C4 .. 25 for L5-S, running on
        from the first disc present; 1 and 2 above it where C2-C3, C1 and vertebrae are in view.
        All 0 without discs or without canal.
    """
    points = np.zeros(labels.shape, dtype=np.uint8)
    line = smooth_centerline((labels == CANAL) | (labels == CORD), float(spacing[2]))
    present = np.bincount(labels.ravel(order="K"), minlength=256) > 0
    codes = [code for code in DISCS if present[code]]
    if len(line) == 0 or not codes:
        return points
    mm = np.asarray(spacing, dtype=np.float64)
    tree = cKDTree(line * mm)
    tips = {code: _nearest_voxel(np.argwhere(labels == code), tree, mm) for code in codes}
    for code, value in zip(codes, _disc_values(codes), strict=True):
        points[tuple(tips[code])] = value
    if DISC_C2_C3 in tips:
        last = np.array(labels.shape) - 1
        for value, point in _upper_points(labels, tips[DISC_C2_C3], line, mm).items():
            points[tuple(np.clip(np.rint(point).astype(np.intp), 0, last))] = value
    return points
