"""Find the voxels of pieces, and count them; lists of voxels take less memory, because most of a map is empty."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import Step2
from totalspineseg_server.transforms.canal import CanalExtent
from totalspineseg_server.transforms.components import (
    Box,
    Labels,
    Mask,
    between_extremes,
    connected_components,
    dilate_faces,
    foreground_box,
    grown_box,
)

Ints = npt.NDArray[np.intp]

JOIN_VOX: Final = 1
"""Components that touch after growing by this many voxels are one piece, because networks leave cracks of 1-2 mm."""
MIN_PIECE_VOXELS: Final = 10
"""Smallest component that is not noise (mm3 at 1 mm)."""
CLASSES: Final = 16
"""Number of columns: enough for the classes of either network."""

Point = tuple[float, float, float]
Profiles = tuple[Ints, Ints, Ints]
"""Number of voxels of each piece (row) at each x, y and z (column)."""


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


def find_remnants(raw: Labels, numbered: npt.NDArray[np.int32], boxes: Sequence[Box]) -> PieceVoxels:
    """Return the voxels without odd/even class, with the vertebra around each.

    Each vertebra is filled between its extremes along x, y or z (one of them is enough) and grown by one voxel;
    remnants inside belong to it. A voxel that two vertebrae claim goes to the superior one.

    Args:
        raw: uint8 (X, Y, Z), step-2 classes. Not modified.
        numbered: int32 of the same shape: value k is vertebra k - 1 from superior to inferior, 0 is none. Not modified.
        boxes: The box of each vertebra.

    Returns:
        The remnants that belong to a vertebra.
    """
    remnants = raw == Step2.VERTEBRA.value
    owner = np.zeros(np.count_nonzero(remnants), dtype=np.intp)
    flat = np.flatnonzero(remnants)
    for k in range(len(boxes), 0, -1):
        box = grown_box(boxes[k - 1], 1, raw.shape)
        here = remnants[box]
        if here.any():
            own = np.ascontiguousarray(numbered[box] == k)
            filled = between_extremes(own, 0) | between_extremes(own, 1) | between_extremes(own, 2)
            x, y, z = np.nonzero(here & dilate_faces(filled))
            at = np.ravel_multi_index((x + box[0].start, y + box[1].start, z + box[2].start), raw.shape)
            owner[np.searchsorted(flat, at)] = k
    found = owner > 0
    return PieceVoxels(flat[found], owner[found] - 1, len(boxes))


@dataclass(frozen=True)
class Tally:
    """Counts of voxels, one row per piece.

    Attributes:
        profiles: Voxels at each x, y and z.
        body_profiles: The same for the voxels in front of the canal.
        classes: Voxels per network class, (n, CLASSES).
    """

    profiles: Profiles
    body_profiles: Profiles
    classes: Ints

    def joined(self, new_owner: Ints, count: int) -> "Tally":
        """Return a tally in which rows with the same new owner are added up."""

        def add(rows: Ints) -> Ints:
            total = np.zeros((count, rows.shape[1]), dtype=np.intp)
            np.add.at(total, new_owner, rows)
            return total

        x, y, z = self.profiles
        body_x, body_y, body_z = self.body_profiles
        return Tally((add(x), add(y), add(z)), (add(body_x), add(body_y), add(body_z)), add(self.classes))

    def plus(self, other: "Tally") -> "Tally":
        """Return the sum of two tallies of the same pieces, row by row."""
        return Tally(
            _sum(self.profiles, other.profiles),
            _sum(self.body_profiles, other.body_profiles),
            self.classes + other.classes,
        )

    def box(self, piece: int) -> Box:
        """Return the smallest box that holds a piece."""
        hits = [np.flatnonzero(profile[piece]) for profile in self.profiles]
        x, y, z = (slice(int(hit[0]), int(hit[-1]) + 1) for hit in hits)
        return x, y, z


def _sum(one: Profiles, other: Profiles) -> Profiles:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def mean_of(profiles: Profiles, piece: int) -> Point:
    """Return the center of mass of a piece that has voxels."""
    x, y, z = (float(p[piece] @ np.arange(p.shape[1]) / p[piece].sum()) for p in profiles)
    return x, y, z


def tally_pieces(raw: Labels, voxels: PieceVoxels, canal: CanalExtent) -> Tally:
    """Count the voxels of every piece.

    Args:
        raw: uint8 (X, Y, Z) RAS, C order, network classes. Not modified.
        voxels: The pieces in it.
        canal: Extent of the canal in the same map.

    Returns:
        The counts; a piece without voxels has zeros.
    """

    def profile(owner: Ints, values: Ints, size: int) -> Ints:
        counts = np.bincount(owner * size + values, minlength=voxels.count * size)
        return counts.reshape(voxels.count, size)

    x, y, z = np.unravel_index(voxels.flat, raw.shape)
    in_front = canal.has_in_front(x, y, z)
    body = voxels.owner[in_front]
    sizes = raw.shape
    return Tally(
        (profile(voxels.owner, x, sizes[0]), profile(voxels.owner, y, sizes[1]), profile(voxels.owner, z, sizes[2])),
        (
            profile(body, x[in_front], sizes[0]),
            profile(body, y[in_front], sizes[1]),
            profile(body, z[in_front], sizes[2]),
        ),
        profile(voxels.owner, raw.ravel()[voxels.flat].astype(np.intp), CLASSES),
    )
