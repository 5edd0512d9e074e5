"""One canal with one cord in it, without holes."""

from typing import Final

import numpy as np

from lib.anatomy import BACKGROUND, CANAL, CORD
from lib.transforms.components import Labels, between_extremes, foreground_box, row_mask

CANAL_PART_VOX: Final = 1000
"""A piece of canal at 1 mm, mm3, that goes on behind a stenosis or metal: three to five millimeters of it."""
CANAL_GAP_VOX: Final = 150
"""Over how many slices: metal hides up to five levels."""
CORD_PART_VOX: Final = 1000
"""The same for the cord: one to two centimeters of it, more than what is taken for cord among the roots below it."""
CORD_GAP_VOX: Final = 15
"""Below a compressed level the cord goes on at once."""


def fill_canal(labels: Labels) -> Labels:
    """Keep one cord and one canal, and close the canal around the cord.

    Cord outside the cord becomes canal; canal and cord outside the canal become background: each is its largest
    component with those that go on from it above and below. Then what lies between canal or cord along x and along
    y, and is not cord, becomes canal, whatever it was.

    Args:
        labels: uint8 (X, Y, Z) RAS, output codes. Not modified.

    Returns:
        A new uint8 map; without canal and cord a copy.

    Source:
        The reference keeps the largest component alone: of a canal that a stenosis interrupts, the shorter part was
        gone, and of a cord that is compressed the part below became canal.
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
    kept = row_mask(canal, min_vox=CANAL_PART_VOX, max_gap_vox=CANAL_GAP_VOX)
    crop[canal & ~kept] = BACKGROUND
    inside = between_extremes(kept, 0) & between_extremes(kept, 1)
    crop[inside & (crop != CORD)] = CANAL
    filled[box] = crop
    return filled
