"""One canal with one cord in it, without holes."""

import numpy as np

from lib.anatomy import BACKGROUND, CANAL, CORD
from lib.transforms.components import Labels, between_extremes, foreground_box, largest_mask


def fill_canal(labels: Labels) -> Labels:
    """Keep one cord and one canal, and close the canal around the cord.

    Cord outside the largest cord component becomes canal; canal and cord outside their largest
    component become background. Then what lies between canal or cord along x and along y, and is
    not cord, becomes canal, whatever it was.

    Args:
        labels: uint8 (X, Y, Z) RAS, output codes. Not modified.

    Returns:
        A new uint8 map; without canal and cord a copy.
    """
    filled = np.array(labels, dtype=np.uint8)
    box = foreground_box((labels == CANAL) | (labels == CORD))
    if box is None:
        return filled
    crop = np.array(labels[box], order="C")
    cord = crop == CORD
    lost_cord = cord & ~largest_mask(cord)
    crop[lost_cord] = CANAL
    canal = (crop == CANAL) | (crop == CORD)
    kept = largest_mask(canal)
    crop[canal & ~kept] = BACKGROUND
    inside = between_extremes(kept, 0) & between_extremes(kept, 1)
    crop[inside & (crop != CORD)] = CANAL
    filled[box] = crop
    return filled
