"""Assign the vertebra voxels to which the step-2 network gave neither the odd nor the even class."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import Step2
from totalspineseg_server.transforms.components import Box, Labels, between_extremes, dilate_faces, grown_box
from totalspineseg_server.transforms.piece_voxels import PieceVoxels


def find_remnants(raw: Labels, numbered: npt.NDArray[np.int32], boxes: Sequence[Box]) -> PieceVoxels:
    """Return the voxels without odd/even class, with the vertebra around each.

    Each vertebra is filled between its extremes along x, y or z (one of them is enough) and grown by one voxel;
    remnants inside belong to it. A voxel that two vertebrae claim goes to the superior one.

    Args:
        raw: uint8 (X, Y, Z), step-2 classes. Not modified.
        numbered: int32 of the same shape: value k is vertebra k - 1 from superior to inferior, 0 is none. Not modified.
        boxes: The box of each vertebra.

    Returns:
        The remnants that belong to a vertebra.
    """
    remnants = raw == Step2.VERTEBRA.value
    owner = np.zeros(np.count_nonzero(remnants), dtype=np.intp)
    flat = np.flatnonzero(remnants)
    for k in range(len(boxes), 0, -1):
        box = grown_box(boxes[k - 1], 1, raw.shape)
        here = remnants[box]
        if here.any():
            own = np.ascontiguousarray(numbered[box] == k)
            filled = between_extremes(own, 0) | between_extremes(own, 1) | between_extremes(own, 2)
            x, y, z = np.nonzero(here & dilate_faces(filled))
            at = np.ravel_multi_index((x + box[0].start, y + box[1].start, z + box[2].start), raw.shape)
            owner[np.searchsorted(flat, at)] = k
    found = owner > 0
    return PieceVoxels(flat[found], owner[found] - 1, len(boxes))
