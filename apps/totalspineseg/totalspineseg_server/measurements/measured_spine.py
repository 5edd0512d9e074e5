"""Give access to the voxels of a label map in mm, and to the canal's centerline."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import CANAL, CORD
from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.transforms.canal import smooth_centerline
from totalspineseg_server.transforms.components import connected_components

Points = npt.NDArray[np.float64]

BAND_MM: Final = 5.0
"""Half the width of the sagittal band: within it endplates are flat from left to right, and no pedicle reaches in."""
PIECES_SHARE: Final = 0.05
"""A structure is not measured if a second part of it is larger than this share of its largest part: it would add to the
thickness."""
EDGE_MM: Final = 2.0
"""A structure that comes closer than this to the border of the image counts as cut off."""


class Spine:
    """The voxels of a label map in mm, with the canal's centerline.

    Args:
        labels: uint8 (X, Y, Z) codes, nearest RAS. Not modified.
        spacing: Voxel size, mm.
    """

    def __init__(self, labels: LabelArray, spacing: Sequence[float]) -> None:
        self.labels, self.mm = labels, np.asarray(spacing, dtype=np.float64)
        self.voxel_mm3 = float(np.prod(self.mm))
        canal = (labels == CANAL) | (labels == CORD)
        self.line = smooth_centerline(canal, float(spacing[2])) * self.mm
        self.canal = np.argwhere(canal)
        self.is_cord = labels[tuple(self.canal.T)] == CORD
        self.canal_mm = self.canal * self.mm
        at = np.argwhere(labels)
        codes = labels[tuple(at.T)]
        order = np.argsort(codes, kind="stable")
        self._at, codes = at[order], codes[order]
        self._start = np.searchsorted(codes, np.arange(257))

    def voxels(self, code: int) -> npt.NDArray[np.intp]:
        """Return the (n, 3) voxel indices of a code."""
        return self._at[self._start[code] : self._start[code + 1]]

    def in_view(self, voxels: npt.NDArray[np.intp]) -> bool:
        """Return whether a structure with these voxels ends inside the image on every side."""
        margin = EDGE_MM / self.mm
        last = np.array(self.labels.shape) - 1
        low, high = voxels.min(axis=0), voxels.max(axis=0)
        return bool((low >= margin).all() and (high <= last - margin).all())

    def has_canal(self, z_mm: float, reach_mm: float) -> bool:
        """Return whether every slice within ``reach_mm`` of a height shows the canal."""
        first, last = (round((z_mm + side * reach_mm) / self.mm[2]) for side in (-1, 1))
        return bool(np.isin(np.arange(first, last + 1), self.canal[:, 2]).all())

    def line_at(self, z_mm: Points) -> tuple[Points, Points]:
        """Return x and y of the centerline at given heights, mm."""
        x = np.interp(z_mm, self.line[:, 2], self.line[:, 0])
        return x, np.interp(z_mm, self.line[:, 2], self.line[:, 1])

    def band(self, code: int) -> tuple[Points, bool]:
        """Return (n, 2) sagittal positions (y, z) mm of the body or disc within the band, and whether it is all in
        view.

        There are no positions for a structure in pieces, such as two discs of one name or a body that a false disc
        divides.
        """
        voxels = self.voxels(code)
        position = voxels * self.mm
        x, y = self.line_at(position[:, 2])
        # The interval is half open, so that it is exactly 2 * BAND_MM wide on a 1 mm grid.
        inside = (position[:, 0] - x >= -BAND_MM) & (position[:, 0] - x < BAND_MM) & (position[:, 1] > y)
        here = voxels[inside]
        if not len(here) or _in_pieces(here):
            return np.empty((0, 2)), False
        return position[inside][:, 1:], self.in_view(here)


def _in_pieces(voxels: npt.NDArray[np.intp]) -> bool:
    mask = np.zeros(np.ptp(voxels, axis=0) + 1, dtype=np.bool_)
    mask[tuple((voxels - voxels.min(axis=0)).T)] = True
    numbered, _ = connected_components(mask, join_vox=1)
    sizes = np.bincount(numbered.ravel())[1:]
    return bool(sizes.sum() - sizes.max() > PIECES_SHARE * sizes.max())


def share(position: Points, footprint: float, low: float, high: float) -> Points:
    """Return how much of each voxel lies between two limits.

    Args:
        position: Centers of voxels along an axis, mm. Not modified.
        footprint: Extent of a voxel along that axis, mm.
        low: Lower limit, mm.
        high: Upper limit, mm.

    Returns:
        1 inside, 0 outside, in between at the limits.
    """
    overlap = np.minimum(position + footprint / 2, high) - np.maximum(position - footprint / 2, low)
    return np.asarray(np.clip(overlap / footprint, 0, 1))
