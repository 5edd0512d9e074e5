"""Find discs with a step-1 network in a scan whose discs are known, for a step-2 channel with realistic errors."""

from typing import Final

import numpy as np
from scipy import ndimage

from lib.anatomy import BACKGROUND, DISCS, STEP1_REGIONS
from lib.geometry import FloatArray, LabelArray
from lib.prediction import Predictor

NEAR_MM: Final = 5
"""A voxel farther than this from every true disc is not a part of its outline."""
_DISC_CLASSES: Final = STEP1_REGIONS["disc"]


def found_discs(image: FloatArray, codes: LabelArray, predictor: Predictor) -> LabelArray:
    """Give each found voxel the code of the nearest true disc, so that either set of discs can be marked.

    Args:
        image: (X, Y, Z) float32 at 1 mm, nearest RAS. Not modified.
        codes: uint8 output codes, the same shape. Not modified.
        predictor: The warm step-1 network.

    Returns:
        uint8 codes of discs, the same shape, 0 elsewhere; all 0 if there is no disc or none was found.
    """
    truth = np.isin(codes, DISCS)
    found = np.isin(predictor.predict(image[np.newaxis]).labels, _DISC_CLASSES)
    if not truth.any() or not found.any():
        return np.zeros_like(codes)
    distance, nearest = ndimage.distance_transform_edt(~truth, return_indices=True)
    named: LabelArray = np.where(found & (distance <= NEAR_MM), codes[tuple(nearest)], BACKGROUND).astype(np.uint8)
    return named
