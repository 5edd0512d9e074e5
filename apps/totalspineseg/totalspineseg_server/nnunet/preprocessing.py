"""Preprocess images for a network: crop to the nonzero box and normalize (resampling follows, see ``resampling``).

Source: the order of operations of nnU-Net 2's DefaultPreprocessor. Different here: resampling is always linear (the
    official plans are at 1 mm, where nothing is resampled).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

FloatArray = npt.NDArray[np.float32]
Box = tuple[slice, slice, slice]

MIN_STD: Final = 1e-8
"""Smallest divisor of the Z-score, so that a constant image becomes 0 and not NaN."""


def nonzero_box(channels: FloatArray) -> Box | None:
    """Return the smallest box with all voxels in which any channel differs from 0; None if there is none.

    Args:
        channels: (C, ...) with three spatial axes. Not modified.
    """
    nonzero = np.any(channels != 0, axis=0)
    spans = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        hits = np.flatnonzero(nonzero.any(axis=others))
        if hits.size == 0:
            return None
        spans.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return spans[0], spans[1], spans[2]


def normalize(channels: FloatArray, schemes: Sequence[str], inside_only: Sequence[bool]) -> FloatArray:
    """Normalize each channel as in the plans.

    Args:
        channels: (C, ...) float32, cropped. Not modified.
        schemes: "ZScoreNormalization" or "NoNormalization" per channel.
        inside_only: For each channel: whether to use the mean and deviation inside the (hole-filled) nonzero mask, and
            normalize only there.

    Returns:
        A new, contiguous array of the same shape.
    """
    inside = ndimage.binary_fill_holes(np.any(channels != 0, axis=0)) if any(inside_only) else None
    result = np.empty(channels.shape, dtype=np.float32)
    for values, channel, scheme, masked in zip(result, channels, schemes, inside_only, strict=True):
        if scheme == "NoNormalization":
            values[...] = channel
        elif masked and inside is not None:
            values[...] = channel
            part = channel[inside]
            values[inside] = (part - part.mean()) / max(part.std(), MIN_STD)
        else:
            np.subtract(channel, channel.mean(), out=values)
            # This is numpy's std without subtracting the mean a second time.
            values /= max(np.sqrt(np.square(values).mean()), MIN_STD)
    return result
