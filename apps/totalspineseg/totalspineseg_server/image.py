"""Hold an image as it was read from a file, and find faults that may keep the networks from finding its levels."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from totalspineseg_server.geometry import FloatArray, Volume


@dataclass(frozen=True)
class Image(Volume):
    """A volume with warnings about its file.

    Attributes:
        warnings: A sentence for each oddity of the file; the image can be used nevertheless.
    """

    warnings: tuple[str, ...] = ()


MIN_VIEW_MM: Final = (10.0, 30.0, 40.0)
"""Smallest useful field of view. A smaller one shows only a part of the canal (from left to right), no vertebra with
its canal (from front to back), or only a single level (from head to foot; 40 mm in the lower back).
"""
VIEW_AXES: Final = ("from left to right", "from front to back", "from head to foot")
BULK_PERCENT: Final = (5, 95)
"""Percentiles that contain the bulk of the values."""
BELOW: Final = 3
"""Values farther below the bulk than this, in widths of the bulk, are not tissue; air, the lowest value, is closer.
"""
ABOVE: Final = 10
"""Values farther above the bulk than this are not tissue; in images with much air, fat and vessels are many widths
above the bulk."""
CONTRAST_LOSS: Final = 3
"""Far values do harm if they raise the standard deviation by more than this factor, because images are normalized by
it."""


def image_faults(image: Volume) -> tuple[str, ...]:
    """Return faults of an image that can keep the networks from finding its levels.

    Args:
        image: Finite values, nearest RAS. Not modified.

    Returns:
        A sentence for each fault; empty for an image with a usual size and usual values.
    """
    return (*_small_view(image), *_far_values(image.data))


def _small_view(image: Volume) -> tuple[str, ...]:
    extents_mm = [count * mm for count, mm in zip(image.data.shape, image.spacing, strict=True)]
    small = [
        f"{extent:.0f} mm {axis}"
        for extent, least, axis in zip(extents_mm, MIN_VIEW_MM, VIEW_AXES, strict=True)
        if extent < least
    ]
    if not small:
        return ()
    return (f"The image covers only {' and '.join(small)}. Send one that shows several levels.",)


def _far_values(data: FloatArray) -> tuple[str, ...]:
    low, high = data.min(), data.max()
    # A fill value may be the most common value of all.
    others = data[(data != low) & (data != high)]
    if not others.size:
        return ()
    start, end = (float(value) for value in np.percentile(others, BULK_PERCENT))
    width = max(end - start, float(np.finfo(np.float32).tiny))
    far = (data < start - BELOW * width) | (data > end + ABOVE * width)
    count = int(np.count_nonzero(far))
    if not count or data.std(dtype=np.float64) < CONTRAST_LOSS * data[~far].std(dtype=np.float64):
        return ()
    furthest = float(low if start - low > high - end else high)
    return (
        f"The image has values far from all others, such as {furthest:.6g}, in {count} of its {data.size} voxels (most "
        f"voxels lie between {start:.6g} and {end:.6g}). They leave the spine without contrast. Replace these values; "
        "replace a fill value with the value of air.",
    )
