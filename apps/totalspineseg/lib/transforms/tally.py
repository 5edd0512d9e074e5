"""Counts and sums of many pieces at once; they add up when pieces are joined."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lib.transforms.centerline import CanalExtent
from lib.transforms.components import Labels, Mask

CLASSES: Final = 16
"""Room for the classes of either network."""

Ints = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Tally:
    """One row per piece.

    Attributes:
        sizes: Voxels, (n,).
        sums: Sum of their x, y, z indices, (n, 3).
        body_sizes, body_sums: The same of the voxels in front of the canal.
        classes: Voxels per network class, (n, CLASSES).
    """

    sizes: Ints
    sums: npt.NDArray[np.float64]
    body_sizes: Ints
    body_sums: npt.NDArray[np.float64]
    classes: Ints

    def joined(self, owner: Ints, count: int) -> "Tally":
        """Add the rows up by their new owner.

        Args:
            owner: New row (0-based) of each row.
            count: Number of new rows.
        """

        sums, body_sums = np.zeros((count, 3)), np.zeros((count, 3))
        np.add.at(sums, owner, self.sums)
        np.add.at(body_sums, owner, self.body_sums)
        classes = np.zeros((count, CLASSES), dtype=np.intp)
        np.add.at(classes, owner, self.classes)
        body_sizes = np.zeros(count, dtype=np.intp)
        np.add.at(body_sizes, owner, self.body_sizes)
        return Tally(classes.sum(axis=1), sums, body_sizes, body_sums, classes)

    def plus(self, other: "Tally") -> "Tally":
        """Row by row sum of two tallies of the same pieces."""
        return Tally(
            self.sizes + other.sizes,
            self.sums + other.sums,
            self.body_sizes + other.body_sizes,
            self.body_sums + other.body_sums,
            self.classes + other.classes,
        )


def _in_front(xyz: tuple[Ints, Ints, Ints], canal: CanalExtent) -> Mask:
    """Anterior to the canal and within its width, at the voxel's own height or the nearest with canal."""
    x, y, z = xyz
    if canal.z.size == 0 or z.size == 0:
        return np.zeros(z.size, dtype=np.bool_)
    heights = np.arange(int(z.max()) + 1)
    upper = np.searchsorted(canal.z, heights).clip(max=canal.z.size - 1)
    lower = (upper - 1).clip(min=0)
    row = np.where(np.abs(canal.z[upper] - heights) <= np.abs(canal.z[lower] - heights), upper, lower)
    front, left, right = canal.y_last[row], canal.x_first[row], canal.x_last[row]
    return np.asarray((y > front[z]) & (x >= left[z]) & (x <= right[z]))


def tally_pieces(raw: Labels, numbered: npt.NDArray[np.int32], count: int, canal: CanalExtent) -> Tally:
    """Count the voxels of every piece.

    Args:
        raw: uint8 (X, Y, Z) RAS, network classes. Not modified.
        numbered: int32 of the same shape; k is piece k - 1, 0 none. Not modified.
        count: Number of pieces; a piece without voxels has zeros.
        canal: Extent of the canal in the same map.
    """
    xyz = np.nonzero(numbered)
    owner = numbered[xyz].astype(np.intp) - 1
    classes = raw[xyz].astype(np.intp)
    front = _in_front((xyz[0], xyz[1], xyz[2]), canal)
    of_body = owner[front]

    def sums(rows: Ints, axes: list[Ints]) -> npt.NDArray[np.float64]:
        return np.stack([np.bincount(rows, weights=axis, minlength=count) for axis in axes], axis=1)

    return Tally(
        np.bincount(owner, minlength=count),
        sums(owner, list(xyz)),
        np.bincount(of_body, minlength=count),
        sums(of_body, [axis[front] for axis in xyz]),
        np.bincount(owner * CLASSES + classes, minlength=count * CLASSES).reshape(count, CLASSES),
    )
