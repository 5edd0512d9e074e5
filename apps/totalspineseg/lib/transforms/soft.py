"""Soft segmentations: network probabilities, limited to the neighborhood of the hard result."""

import numpy as np
import numpy.typing as npt

from lib.transforms.components import Mask, dilate_faces, foreground_box


def soft_structure(probability: npt.NDArray[np.float32], mask: Mask) -> npt.NDArray[np.float32]:
    """Return a region's probability inside its hard label grown by one voxel.

    Args:
        probability: float32 (X, Y, Z), 0 to 1. Not modified.
        mask: bool (X, Y, Z), the hard label on the same grid. Not modified.

    Returns:
        A new float32 array, 0 elsewhere; all 0 for an empty mask.

    Raises:
        ValueError: The shapes differ.
    """
    if probability.shape != mask.shape:
        raise ValueError(f"expected probability and mask on one grid, got {probability.shape} and {mask.shape}")
    soft = np.zeros(mask.shape, dtype=np.float32)
    box = foreground_box(mask, margin_vox=1)
    if box is not None:
        soft[box] = probability[box] * dilate_faces(np.ascontiguousarray(mask[box]))
    return soft
