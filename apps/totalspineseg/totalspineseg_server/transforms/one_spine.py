"""Keep one spine in a network's map, even if metal or a void cuts it in two."""

from typing import Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import DISC_CLASSES
from totalspineseg_server.transforms.canal import CANAL_PART_VOX
from totalspineseg_server.transforms.components import (
    JOIN_LARGEST_VOX,
    Labels,
    Mask,
    connected_components,
    foreground_box,
    gap_vox,
)
from totalspineseg_server.transforms.pieces import Step, canal_mask

MIN_DISC_VOX: Final = 300
"""Smallest number of disc voxels in a part of the spine (at 1 mm, mm3): half of a small disc."""
ASIDE_MM: Final = 15.0
"""How far to the side of the canal's end another part may begin if there is no gap, mm."""
ASIDE_SHARE: Final = 0.5
"""How much that distance grows for each mm of gap: a lordotic lumbar canal runs 30 degrees off the vertical."""


def one_spine(raw: Labels, step: Step) -> Labels:
    """Return the largest component of a map, and the parts of the spine above it, below it and between.

    Args:
        raw: uint8 (X, Y, Z) RAS, 1 mm, classes of the step's network. Not modified.
        step: 1 or 2.

    Returns:
        A new uint8 map, 0 elsewhere; all 0 for an empty map.

    Source:
        The reference keeps only the largest component, and so loses half of the spine behind metal that hides bone,
        discs and canal. Here another part must have canal and disc, must not have canal at the same height as the parts
        found before, and must begin near the end of that canal.
    """
    spine = np.zeros(raw.shape, dtype=np.uint8)
    box = foreground_box(raw)
    if box is None:
        return spine
    crop = np.ascontiguousarray(raw[box])
    numbered, count = connected_components(crop != 0, join_vox=JOIN_LARGEST_VOX)
    sizes = np.bincount(numbered[crop != 0], minlength=count + 1)
    largest = int(np.argmax(sizes))
    if count == 1:
        spine[box] = crop
        return spine
    canal = canal_mask(crop, step)
    of_canal = np.bincount(numbered[canal], minlength=count + 1)
    of_discs = np.bincount(numbered[np.isin(crop, DISC_CLASSES)], minlength=count + 1)
    parts = np.flatnonzero((of_canal >= CANAL_PART_VOX) & (of_discs >= MIN_DISC_VOX))
    mask = numbered == largest
    left = sorted((k for k in parts.tolist() if k != largest), key=lambda k: -sizes[k])
    while found := next((k for k in left if _goes_on(canal & (numbered == k), canal & mask)), None):
        left.remove(found)
        mask |= numbered == found
    spine[box] = crop * mask
    return spine


def _goes_on(part: Mask, canal: Mask) -> bool:
    """Return whether a piece of canal lies above, below or between the others, near their ends."""
    mine, its = (np.flatnonzero(mask.any(axis=(0, 1))) for mask in (part, canal))
    gap = gap_vox(mine, its)
    if not gap:
        return False
    end, next_to_it = (mine[0], mine[0] - gap) if mine[0] - gap in its else (mine[-1], mine[-1] + gap)
    aside = float(np.linalg.norm(_middle(part, int(end)) - _middle(canal, int(next_to_it))))
    return aside <= ASIDE_MM + ASIDE_SHARE * gap


def _middle(mask: Mask, z: int) -> npt.NDArray[np.float64]:
    return np.asarray(np.argwhere(mask[:, :, z]).mean(axis=0), dtype=np.float64)
