"""Clean up the canal: one canal with one cord in it, without holes."""

from typing import Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import BACKGROUND, CANAL, CORD
from totalspineseg_server.transforms.components import (
    Labels,
    Mask,
    between_extremes,
    dilate_faces,
    foreground_box,
    row_mask,
)

CANAL_PART_VOX: Final = 1000
"""Smallest piece of canal, mm3 at 1 mm, that counts as its continuation behind a stenosis or metal: 3 to 5 mm of its
length."""
CANAL_GAP_VOX: Final = 150
"""Largest number of slices between two pieces of canal: metal hides up to five levels."""
CORD_PART_VOX: Final = 1000
"""The same for the cord: 1 to 2 cm of its length, more than the length of roots that are mistaken for cord below it."""
CORD_GAP_VOX: Final = 15
"""The same for the cord, which continues directly below a compressed level."""


def fill_canal(labels: Labels) -> Labels:
    """Return a map with one cord and one canal, closed around the cord.

    The largest component of the cord is kept, as are the components that continue it above and below; the same holds
    for the canal. Other cord becomes canal; other canal, and cord outside the canal, become background. Then everything
    between canal or cord along x and along y that is not cord becomes canal.

    Args:
        labels: uint8 (X, Y, Z) RAS, output codes. Not modified.

    Returns:
        A new uint8 map; a copy if there is neither canal nor cord.

    Source:
        The reference keeps only the largest component: it loses the shorter part of a canal that a stenosis interrupts,
        and turns the cord below a compression into canal.
    """
    filled = np.array(labels, dtype=np.uint8)
    box = foreground_box((labels == CANAL) | (labels == CORD))
    if box is None:
        return filled
    crop = np.array(labels[box], order="C")
    cord = crop == CORD
    lost_cord = cord & ~row_mask(cord, min_vox=CORD_PART_VOX, max_gap_vox=CORD_GAP_VOX)
    crop[lost_cord] = CANAL
    canal = (crop == CANAL) | (crop == CORD)
    one_canal = row_mask(canal, min_vox=CANAL_PART_VOX, max_gap_vox=CANAL_GAP_VOX)
    crop[canal & ~one_canal] = BACKGROUND
    inside = between_extremes(one_canal, 0) & between_extremes(one_canal, 1)
    crop[inside & (crop != CORD)] = CANAL
    filled[box] = crop
    return filled


def soft_structure(probability: npt.NDArray[np.float32], mask: Mask) -> npt.NDArray[np.float32]:
    """Return a region's probability inside its label, grown by one voxel.

    Args:
        probability: float32 (X, Y, Z), 0 to 1. Not modified.
        mask: bool (X, Y, Z), the label on the same grid. Not modified.

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
