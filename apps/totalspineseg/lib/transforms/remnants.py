"""Vertebra voxels that the step-2 network gave no odd/even class."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lib.anatomy import Step2
from lib.transforms.components import Box, Labels, between_extremes, dilate_faces, grown_box


def assign_remnants(raw: Labels, numbered: npt.NDArray[np.int32], boxes: Sequence[Box]) -> npt.NDArray[np.int32]:
    """Give voxels without odd/even class to the vertebra around them.

    A vertebra is filled between its extremes along x, along y or along z (any one suffices) and grown
    once; the voxels in there are its own. Where two vertebrae claim one, the superior gets it.

    Args:
        raw: uint8 (X, Y, Z), step-2 classes. Not modified.
        numbered: int32 of the same shape; k is vertebra k - 1 from superior to inferior, 0 none. Not modified.
        boxes: The box of each vertebra.

    Returns:
        A new int32 map with the remnants alone; 0 elsewhere.
    """
    remnants = raw == Step2.VERTEBRA.value
    assigned = np.zeros(numbered.shape, dtype=np.int32)
    if not remnants.any():
        return assigned
    for k in range(len(boxes), 0, -1):
        box = grown_box(boxes[k - 1], 1, numbered.shape)
        here = remnants[box]
        if here.any():
            own = np.ascontiguousarray(numbered[box] == k)
            filled = between_extremes(own, 0) | between_extremes(own, 1) | between_extremes(own, 2)
            assigned[box][here & dilate_faces(filled)] = k
    return assigned
