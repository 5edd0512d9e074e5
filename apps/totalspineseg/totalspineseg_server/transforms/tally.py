"""Count the voxels of many pieces at once; the counts add up when pieces are joined."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.transforms.centerline import CanalExtent
from totalspineseg_server.transforms.components import Box, Labels
from totalspineseg_server.transforms.piece_voxels import PieceVoxels

CLASSES: Final = 16
"""Number of columns: enough for the classes of either network."""

Ints = npt.NDArray[np.intp]
Point = tuple[float, float, float]
Profiles = tuple[Ints, Ints, Ints]
"""Number of voxels of each piece (row) at each x, y and z (column)."""


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
