"""Follow the canal: one voxel per slice to order pieces by, and a smooth line for levels."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.interpolate import splev, splrep

from totalspineseg_server.transforms.components import Mask, foreground_box

SMOOTHING: Final = 8000.0
"""Smoothing of the spline for 3 mm slices without gaps (squared voxels over the whole line)."""
SMOOTHING_SLICE_MM: Final = 3.0
SPLINE_DEGREE: Final = 3


def _extent(hits: Mask) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the first and the last True along axis 0 for every column of axis 1; undefined for columns without
    True."""
    return hits.argmax(axis=0), hits.shape[0] - 1 - hits[::-1].argmax(axis=0)


@dataclass(frozen=True)
class CanalExtent:
    """Extent of canal and cord in each axial slice that shows them, as voxel indices, both ends included.

    Attributes:
        z: Slices with canal, rising.
        x_first, x_last: Left and right end in each of them.
        y_first, y_last: Posterior and anterior end.
        points: The middle voxel of each slice where that voxel is canal or cord, (n, 3), rising z.
    """

    z: npt.NDArray[np.intp]
    x_first: npt.NDArray[np.intp]
    x_last: npt.NDArray[np.intp]
    y_first: npt.NDArray[np.intp]
    y_last: npt.NDArray[np.intp]
    points: npt.NDArray[np.intp]

    def has_in_front(
        self, x: npt.NDArray[np.intp], y: npt.NDArray[np.intp], z: npt.NDArray[np.intp]
    ) -> npt.NDArray[np.bool_]:
        """Return which voxels lie anterior to the canal and within its width, at the nearest height with canal.

        Args:
            x, y, z: (n,) voxel indices. Not modified.

        Returns:
            (n,); all False without a canal. If two heights are equally near, the upper one counts.
        """
        if self.z.size == 0 or z.size == 0:
            return np.zeros(z.size, dtype=np.bool_)
        heights = np.arange(z.max() + 1)
        upper = np.searchsorted(self.z, heights).clip(max=self.z.size - 1)
        lower = (upper - 1).clip(min=0)
        row = np.where(np.abs(self.z[upper] - heights) <= np.abs(self.z[lower] - heights), upper, lower)
        front, left, right = self.y_last[row], self.x_first[row], self.x_last[row]
        return np.asarray((y > front[z]) & (x >= left[z]) & (x <= right[z]))


def canal_extent(canal: Mask) -> CanalExtent:
    """Measure canal and cord slice by slice.

    Args:
        canal: bool (X, Y, Z) RAS, canal or cord. Not modified.

    Returns:
        The extents; all arrays are empty if the mask is.
    """
    along_x, along_y = canal.any(axis=1), canal.any(axis=0)
    z = np.flatnonzero(along_x.any(axis=0))
    x_first, x_last = _extent(along_x[:, z])
    y_first, y_last = _extent(along_y[:, z])
    middle = np.stack([(x_first + x_last) // 2, (y_first + y_last) // 2, z], axis=1)
    inside = canal[middle[:, 0], middle[:, 1], middle[:, 2]]
    return CanalExtent(z, x_first, x_last, y_first, y_last, middle[inside])


def smooth_centerline(canal: Mask, slice_mm: float) -> npt.NDArray[np.float64]:
    """Return a smoothing spline through the center of the canal.

    Args:
        canal: bool (X, Y, Z) RAS, canal or cord. Not modified.
        slice_mm: Distance between axial slices, mm.

    Returns:
        (n, 3) voxel coordinates, one point per slice from the first to the last slice with canal,
        rising z; (0, 3) if the mask is empty. If there are too few slices for a spline, their means are interpolated.
    """
    box = foreground_box(canal)
    if box is None:
        return np.zeros((0, 3))
    crop = np.ascontiguousarray(canal[box])
    counts = crop.sum(axis=(0, 1))
    z = np.flatnonzero(counts)
    x_mean = np.arange(crop.shape[0]) @ crop.sum(axis=1)[:, z] / counts[z] + box[0].start
    y_mean = np.arange(crop.shape[1]) @ crop.sum(axis=0)[:, z] / counts[z] + box[1].start
    every = np.arange(crop.shape[2])
    if z.size <= SPLINE_DEGREE:
        x_line, y_line = np.interp(every, z, x_mean), np.interp(every, z, y_mean)
    else:
        smoothing = SMOOTHING * slice_mm / SMOOTHING_SLICE_MM * (z.size / every.size) ** 2
        x_line = splev(every, splrep(z, x_mean, k=SPLINE_DEGREE, s=smoothing))
        y_line = splev(every, splrep(z, y_mean, k=SPLINE_DEGREE, s=smoothing))
    return np.stack([x_line, y_line, every + box[2].start], axis=1)
