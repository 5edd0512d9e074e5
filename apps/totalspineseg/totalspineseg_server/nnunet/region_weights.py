"""Weigh each voxel of each region in the loss: less where a reader left a network's prediction as it was."""

from collections.abc import Sequence
from typing import Final

import torch

from totalspineseg_server.nnunet.targets import REGIONS, Step, region_masks

UNTOUCHED_WEIGHT: Final = 0.1
"""Weight of a structure that was left as the parent predicted it. With full weight the parent's errors would be learned
as truth; with a tenth the network keeps to the prediction where nothing else is known."""
RIM_MM: Final = 3.0
"""How far the true border may be from the labeled one. If the surroundings counted fully as background and the
structure only a tenth, every doubtful voxel would become background, and the structure would shrink."""

Rim = tuple[int, int, int]


def rim_of(spacing_mm: Sequence[float]) -> Rim:
    """Return ``RIM_MM`` in voxels along each axis, at least one.

    Args:
        spacing_mm: Voxel size of three axes.
    """
    a, b, c = (max(1, round(RIM_MM / mm)) for mm in spacing_mm)
    return a, b, c


def region_weights(classes: torch.Tensor, untouched: torch.Tensor, step: Step, rim: Rim) -> torch.Tensor:
    """Return the weight of each voxel for each region.

    An untouched structure has less weight in its own voxels, for every region (because its name, too, is only
    predicted), and for its own regions also around it. Around a structure of the same region that a reader drew, the
    weight is full: the border of a drawn canal is known, even if the cord inside is untouched.

    Args:
        classes: (A, B, C) uint8 of the step. Not modified.
        untouched: Voxels of untouched structures, bool, the same shape. Not modified.
        step: 1 or 2.
        rim: See ``rim_of``.

    Returns:
        (R, A, B, C) float16: ``UNTOUCHED_WEIGHT`` or 1; all 1 if nothing is untouched.
    """
    weights = torch.ones((len(REGIONS[step]), *classes.shape), dtype=torch.float16)
    if untouched.any():
        masks = region_masks(classes[None], step)[0]
        doubtful = untouched | _grown(masks & untouched, rim)
        weights[doubtful & ~_grown(masks & ~untouched, rim)] = UNTOUCHED_WEIGHT
    return weights


def _grown(masks: torch.Tensor, rim: Rim) -> torch.Tensor:
    """Return masks (R, A, B, C) extended by a box of a rim around each voxel.

    For 96 x 128 x 96 voxels this takes 1.5 ms for each mask, PyTorch's max pooling 190.
    """
    for axis, width in enumerate(rim, start=1):
        wider, length = masks.clone(), masks.shape[axis]
        for shift in range(1, min(width, length - 1) + 1):
            before, after = (0, length - shift), (shift, length - shift)
            wider.narrow(axis, *after).logical_or_(masks.narrow(axis, *before))
            wider.narrow(axis, *before).logical_or_(masks.narrow(axis, *after))
        masks = wider
    return masks
