"""Mark each disc by a point, in the convention of the Spinal Cord Toolbox."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from totalspineseg_server.anatomy import C1, CANAL, CORD, DISC_C2_C3, LEVEL_POINT, POINT_C1_C2, POINT_C1_TOP, SACRUM
from totalspineseg_server.transforms.canal import smooth_centerline
from totalspineseg_server.transforms.components import Labels, foreground_box, look_up

MIN_C1_VOXELS: Final = 500
"""C1 counts as visible with more voxels than this (mm3 at 1 mm)."""

Points = npt.NDArray[np.float64]
Voxel = npt.NDArray[np.intp]


def _upper_points(labels: Labels, c2_c3: Voxel, line: Points, spacing: Points) -> dict[int, Voxel]:
    """Return points 1 and 2, above the C2-C3 disc; none if C1 or vertebrae are missing."""
    c1 = labels == C1
    if np.count_nonzero(c1) <= MIN_C1_VOXELS:
        return {}
    c1_top = int(np.flatnonzero(c1.any(axis=(0, 1)))[-1])
    below_top = np.argwhere(labels[c2_c3[0], :, :c1_top] == SACRUM)
    if len(below_top) == 0:
        return {}
    # Of several equally superior voxels the most anterior one is used, and halves are rounded up, because TotalSpineSeg
    # counts from the anterior and superior end.
    y, z = below_top[np.lexsort((below_top[:, 0], below_top[:, 1]))[-1]]
    top = np.array([c2_c3[0], y, z])
    middle = (top + c2_c3 + 1) // 2
    at = np.argmin((((line - c2_c3) * spacing) ** 2).sum(axis=1))
    shift = np.array([c2_c3[0] - line[at, 0], c2_c3[1] - line[at, 1], 0.0])
    shifted = np.rint(line + shift).astype(np.intp)
    return {
        value: shifted[np.argmin((((shifted - point) * spacing) ** 2).sum(axis=1))]
        for value, point in ((POINT_C1_TOP, top), (POINT_C1_C2, middle))
    }


def _disc_tips(labels: Labels, line: Points, spacing: Points) -> dict[int, Voxel]:
    """Return disc code -> the disc's voxel nearest to the line."""
    table = np.zeros(256, dtype=np.bool_)
    table[list(LEVEL_POINT)] = True
    voxels = np.argwhere(look_up(labels, table))
    if len(voxels) == 0:
        return {}
    distances, _ = cKDTree(line * spacing).query(voxels * spacing)
    codes = labels[tuple(voxels.T)]
    order = np.lexsort((distances, codes))
    found, first = np.unique(codes[order], return_index=True)
    return {int(code): voxels[order[k]] for code, k in zip(found, first, strict=True)}


def level_points(labels: Labels, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Labels:
    """Return a map that marks every disc by its voxel nearest to the canal, and the two levels above C2-C3.

    Args:
        labels: uint8 (X, Y, Z) RAS, the step-1 result in output codes. Not modified.
        spacing: Voxel size, mm.

    Returns:
        A new uint8 map with one voxel per level: 3 for C2-C3, 4 for C3-C4 .. 25 for L5-S; 1 and 2 above them where
        C2-C3, C1 and vertebrae are in view. The extra discs T12-T13 and L5-L6 have no point, because the convention
        has no value for them. All 0 without discs or without canal.
    """
    points = np.zeros(labels.shape, dtype=np.uint8)
    box = foreground_box(labels)
    if box is None:
        return points
    crop = np.ascontiguousarray(labels[box])
    line = smooth_centerline((crop == CANAL) | (crop == CORD), float(spacing[2]))
    if len(line) == 0:
        return points
    mm = np.asarray(spacing, dtype=np.float64)
    tips = _disc_tips(crop, line, mm)
    inside = points[box]
    for code, tip in tips.items():
        inside[tuple(tip)] = LEVEL_POINT[code]
    if DISC_C2_C3 in tips:
        last = np.array(crop.shape) - 1
        for value, point in _upper_points(crop, tips[DISC_C2_C3], line, mm).items():
            inside[tuple(np.clip(point, 0, last))] = value
    return points
