"""Store the voxels of pieces as lists, because most of a map is empty and a list takes less memory."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.transforms.components import Mask, connected_components, foreground_box

Ints = npt.NDArray[np.intp]

JOIN_VOX: Final = 1
"""Components that touch after growing by this many voxels are one piece, because networks leave cracks of 1-2 mm."""
MIN_PIECE_VOXELS: Final = 10
"""Smallest component that is not noise (mm3 at 1 mm)."""


@dataclass(frozen=True)
class PieceVoxels:
    """The voxels of many pieces as a list.

    Attributes:
        flat: Index of each voxel in the C-ordered map.
        owner: Its piece, 0-based.
        count: Number of pieces.
    """

    flat: Ints
    owner: Ints
    count: int

    def number(self, shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
        """Return a new map in which the voxels of piece k have the value k + 1, and all others 0."""
        numbered = np.zeros(shape, dtype=np.int32)
        numbered.ravel()[self.flat] = self.owner + 1
        return numbered

    def owned_by(self, new_owner: Ints, count: int) -> "PieceVoxels":
        """Return the same voxels after piece k became (part of) piece ``new_owner[k]``."""
        return PieceVoxels(self.flat, new_owner[self.owner], count)


def all_voxels(parts: list[PieceVoxels]) -> PieceVoxels:
    """Return the pieces of all lists as one list, numbered consecutively."""
    starts = np.cumsum([0, *(part.count for part in parts)])
    return PieceVoxels(
        np.concatenate([part.flat for part in parts]),
        np.concatenate([part.owner + start for part, start in zip(parts, starts[:-1], strict=True)]),
        int(starts[-1]),
    )


def find_voxels(mask: Mask) -> PieceVoxels:
    """Return the voxels of all components of a mask that are large enough.

    Args:
        mask: bool (X, Y, Z), C order. Not modified.

    Returns:
        One piece per component, in no particular order; none for an empty mask.
    """
    nothing = PieceVoxels(np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp), 0)
    box = foreground_box(mask)
    if box is None:
        return nothing
    crop = np.ascontiguousarray(mask[box])
    numbered, count = connected_components(crop, join_vox=JOIN_VOX)
    inside = np.flatnonzero(crop)
    component = numbered.ravel()[inside]
    large = np.bincount(component, minlength=count + 1) >= MIN_PIECE_VOXELS
    in_large = large[component]
    x, y, z = np.unravel_index(inside[in_large], crop.shape)
    flat = np.ravel_multi_index((x + box[0].start, y + box[1].start, z + box[2].start), mask.shape)
    rank = np.cumsum(large) - 1
    return PieceVoxels(flat, rank[component[in_large]], int(large.sum()))
