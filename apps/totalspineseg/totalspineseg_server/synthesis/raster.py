"""Describe the grid of a scan: boxes around parts, and coordinates in their frames."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from totalspineseg_server.synthesis.column import Frame
from totalspineseg_server.synthesis.shapes import Local

Box = tuple[slice, slice, slice]
Corner = Sequence[float] | NDArray[np.float64]
WORLD = Frame(np.zeros(3), np.eye(3))
"""The axes of the scanner."""


@dataclass(frozen=True)
class Raster:
    """An axis-aligned RAS grid.

    Attributes:
        shape: Voxels along x, y, z.
        spacing: Voxel size, mm.
        origin: RAS mm of the first voxel's center.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]

    @property
    def affine(self) -> NDArray[np.float64]:
        """The (4, 4) affine, voxel -> RAS mm."""
        matrix = np.diag([*self.spacing, 1.0])
        matrix[:3, 3] = self.origin
        return matrix

    def axis(self, number: int) -> NDArray[np.float32]:
        """Return the RAS mm of the voxel centers along one axis."""
        return (self.origin[number] + self.spacing[number] * np.arange(self.shape[number])).astype(np.float32)

    def box(self, frame: Frame, low: Corner, high: Corner) -> Box | None:
        """Return the part of the grid around a frame's box from ``low`` to ``high`` (mm); None if that is outside."""
        corners = np.array([[(low, high)[(n >> k) & 1][k] for k in range(3)] for n in range(8)])
        world = frame.origin + corners @ frame.axes.T
        first = np.floor((world.min(0) - self.origin) / self.spacing).astype(int)
        last = np.ceil((world.max(0) - self.origin) / self.spacing).astype(int) + 1
        first, last = np.maximum(first, 0), np.minimum(last, self.shape)
        if (first >= last).any():
            return None
        return tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))  # type: ignore[return-value]

    def around(self, frame: Frame, start: Corner, end: Corner, radius: float) -> Box | None:
        """Return the part of the grid around a frame's capsule (mm), with a margin of 1 mm; None if that is outside."""
        low, high = np.minimum(start, end) - radius - 1, np.maximum(start, end) + radius + 1
        return self.box(frame, low, high)

    def local(self, frame: Frame, box: Box) -> Local:
        """Return the coordinates of the box's voxels in the frame, mm."""
        offsets = [
            (self.axis(k)[box[k]] - np.float32(frame.origin[k])).reshape([-1 if i == k else 1 for i in range(3)])
            for k in range(3)
        ]
        axes = frame.axes.astype(np.float32)
        right, anterior, superior = (
            (offsets[0] * axes[0, k] + offsets[1] * axes[1, k]) + offsets[2] * axes[2, k] for k in range(3)
        )
        return Local(right, anterior, superior)


def overlap(one: Box, other: Box) -> Box:
    """Return the overlap of two boxes; it is empty if they do not meet."""
    pairs = zip(one, other, strict=True)
    x, y, z = (slice(max(a.start, b.start), max(a.start, b.start, min(a.stop, b.stop))) for a, b in pairs)
    return x, y, z
