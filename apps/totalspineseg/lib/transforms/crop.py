"""Where step 2 looks: the box of the step-1 result."""

from typing import Final

from lib.transforms.components import Box, Labels, foreground_box

CROP_MARGIN_MM: Final = 10
"""Margin around the step-1 result, so that step 2 sees what step 1 cut too tight (voxels at 1 mm)."""


def step2_box(labels: Labels) -> Box | None:
    """The part of the 1 mm image that goes to step 2.

    Args:
        labels: uint8 (X, Y, Z) 1 mm, the step-1 result. Not modified.

    Returns:
        One slice per axis, inside the array; None for an empty map.
    """
    return foreground_box(labels, margin_vox=CROP_MARGIN_MM)
