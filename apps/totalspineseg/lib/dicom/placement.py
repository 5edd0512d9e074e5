"""Which voxel of one grid is which of another: axes may be swapped and flipped, nothing else."""

from typing import Final

import numpy as np

from lib.errors import GridError
from lib.geometry import Affine, AnyArray, Grid

MAX_OFFSET_VOX: Final = 0.25
"""Voxel centers may lie this far apart and still be the same voxel: above rounded headers, below half a voxel."""


def rearranged(data: AnyArray, source: Grid, target: Grid) -> AnyArray:
    """An array of one grid in the axis order and directions of another with the same voxels.

    Args:
        data: (X, Y, Z) on ``source``. Not modified.
        source: Its grid.
        target: Where it is wanted.

    Returns:
        View of ``data`` with ``target.shape``.

    Raises:
        GridError: The grids do not have the same voxels.
    """
    mapping = np.linalg.inv(source.affine) @ target.affine
    order = [int(axis) for axis in np.abs(mapping[:3, :3]).argmax(axis=0)]
    if sorted(order) == [0, 1, 2]:
        turned = data.transpose(order)
        signs = [mapping[axis, column] for column, axis in enumerate(order)]
        turned = turned[tuple(slice(None, None, -1 if sign < 0 else 1) for sign in signs)]
        if turned.shape == target.shape and _same_voxels(mapping, order, source, target):
            return turned
    raise GridError(
        f"a label map on the grid of the DICOM series is required (shape {target.shape}, {target.orientation}), "
        f"got shape {source.shape}, {source.orientation}, or another place; use the image made from this series"
    )


def _same_voxels(mapping: Affine, order: list[int], source: Grid, target: Grid) -> bool:
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in target.shape], indexing="ij")).reshape(3, -1)
    found = mapping[:3, :3] @ corners + mapping[:3, 3:]
    expected = np.empty_like(found)
    for column, axis in enumerate(order):
        index = corners[column]
        expected[axis] = index if mapping[axis, column] > 0 else source.shape[axis] - 1 - index
    return bool(np.abs(found - expected).max() <= MAX_OFFSET_VOX)
