"""Find the part of the scan that step 2 sees: the box around the step-1 result."""

from typing import Final

from totalspineseg_server.errors import NoSpineError
from totalspineseg_server.transforms.components import Box, Labels, foreground_box

CROP_MARGIN_MM: Final = 10
"""Margin around the step-1 result, at inference and in training: the step-2 networks were trained with it."""


def crop_box(labels: Labels, *, margin: int) -> Box:
    """Return the part of a scan that goes to step 2.

    Args:
        labels: uint8 (X, Y, Z) 1 mm, the step-1 result. Not modified.
        margin: Voxels to add on every side, as far as the array goes.

    Returns:
        One slice per axis.

    Raises:
        NoSpineError: The map is empty.
    """
    box = foreground_box(labels, margin_vox=margin)
    if box is None:
        raise NoSpineError(
            "The step-1 result is empty: no spine was found. Check that the image shows the spine, or draw a disc."
        )
    return box
