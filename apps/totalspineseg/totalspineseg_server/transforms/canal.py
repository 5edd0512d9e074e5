"""Clean up the canal (one canal with one cord in it, without holes), follow it from slice to slice, measure along it.

The distance along the canal is the ruler for everything else.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.interpolate import splev, splrep
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree

from totalspineseg_server.anatomy import BACKGROUND, CANAL, CORD
from totalspineseg_server.transforms.components import (
    Labels,
    Mask,
    between_extremes,
    dilate_faces,
    foreground_box,
    row_mask,
)

Floats = npt.NDArray[np.float64]

CANAL_PART_VOX: Final = 1000
"""Smallest piece of canal, mm3 at 1 mm, that counts as its continuation behind a stenosis or metal: 3 to 5 mm of its
length."""
CANAL_GAP_VOX: Final = 150
"""Largest number of slices between two pieces of canal: metal hides up to five levels."""
CORD_PART_VOX: Final = 1000
"""The same for the cord: 1 to 2 cm of its length, more than the length of roots that are mistaken for cord below it."""
CORD_GAP_VOX: Final = 15
"""The same for the cord, which continues directly below a compressed level."""
SMOOTHING: Final = 8000.0
"""Smoothing of the spline for 3 mm slices without gaps (squared voxels over the whole line)."""
SMOOTHING_SLICE_MM: Final = 3.0
SPLINE_DEGREE: Final = 3
COURSE_SMOOTHING_MM: Final = 8.0
"""Standard deviation of the smoothing of the canal's middle. It removes steps between voxels and keeps every real
curve, because a curve of the spine is longer than 60 mm.
"""
TANGENT_MM: Final = 25.0
"""Length of the end piece whose direction continues the line beyond the canal."""
BEYOND_MM: Final = 80.0
"""Length by which the line is continued at both ends."""


def fill_canal(labels: Labels) -> Labels:
    """Return a map with one cord and one canal, closed around the cord.

    The largest component of the cord is kept, as are the components that continue it above and below; the same holds
    for the canal. Other cord becomes canal; other canal, and cord outside the canal, become background. Then everything
    between canal or cord along x and along y that is not cord becomes canal.

    Args:
        labels: uint8 (X, Y, Z) RAS, output codes. Not modified.

    Returns:
        A new uint8 map; a copy if there is neither canal nor cord.

    Source:
        The reference keeps only the largest component: it loses the shorter part of a canal that a stenosis interrupts,
        and turns the cord below a compression into canal.
    """
    filled = np.array(labels, dtype=np.uint8)
    box = foreground_box((labels == CANAL) | (labels == CORD))
    if box is None:
        return filled
    crop = np.array(labels[box], order="C")
    cord = crop == CORD
    lost_cord = cord & ~row_mask(cord, min_vox=CORD_PART_VOX, max_gap_vox=CORD_GAP_VOX)
    crop[lost_cord] = CANAL
    canal = (crop == CANAL) | (crop == CORD)
    one_canal = row_mask(canal, min_vox=CANAL_PART_VOX, max_gap_vox=CANAL_GAP_VOX)
    crop[canal & ~one_canal] = BACKGROUND
    inside = between_extremes(one_canal, 0) & between_extremes(one_canal, 1)
    crop[inside & (crop != CORD)] = CANAL
    filled[box] = crop
    return filled


def soft_structure(probability: npt.NDArray[np.float32], mask: Mask) -> npt.NDArray[np.float32]:
    """Return a region's probability inside its label, grown by one voxel.

    Args:
        probability: float32 (X, Y, Z), 0 to 1. Not modified.
        mask: bool (X, Y, Z), the label on the same grid. Not modified.

    Returns:
        A new float32 array, 0 elsewhere; all 0 for an empty mask.

    Raises:
        ValueError: The shapes differ.
    """
    if probability.shape != mask.shape:
        raise ValueError(f"expected probability and mask on one grid, got {probability.shape} and {mask.shape}")
    soft = np.zeros(mask.shape, dtype=np.float32)
    box = foreground_box(mask, margin_vox=1)
    if box is not None:
        soft[box] = probability[box] * dilate_faces(np.ascontiguousarray(mask[box]))
    return soft


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


@dataclass(frozen=True)
class Course:
    """A line through the canal, from superior to inferior.

    Attributes:
        points_mm: (n, 3) points, voxel index times spacing.
        distance_mm: (n,) distance along the line; 0 where the canal begins, negative above.
    """

    points_mm: Floats
    distance_mm: Floats

    @cached_property
    def _tree(self) -> cKDTree:
        """A search tree of the points."""
        return cKDTree(self.points_mm)

    def locate(self, points_mm: npt.ArrayLike) -> Floats:
        """Return the distance along the line of the place nearest to each point.

        Args:
            points_mm: (m, 3) points, voxel index times spacing.

        Returns:
            (m,) mm, increasing toward inferior.
        """
        return self.locate_and_measure(points_mm)[0]

    def locate_and_measure(self, points_mm: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Return what ``locate`` returns for (m, 3) points, and their (m,) distances from the line, mm."""
        points = np.asarray(points_mm, dtype=np.float64).reshape(-1, 3)
        away, nearest = self._tree.query(points)
        before, after = np.maximum(nearest - 1, 0), np.minimum(nearest + 1, len(self.points_mm) - 1)
        tangent = self.points_mm[after] - self.points_mm[before]
        length = np.linalg.norm(tangent, axis=1)
        along = ((points - self.points_mm[nearest]) * tangent).sum(axis=1) / np.maximum(length, 1e-9)
        places = self.distance_mm[nearest] + np.clip(along, -length, length)
        return np.asarray(places, dtype=np.float64), np.asarray(away)


@dataclass(frozen=True)
class Ruler:
    """The canal of one map, measured once.

    Attributes:
        course: The line through the canal; None if no slice shows it.
        extent: The canal's extent slice by slice, voxel indices.
        spacing_mm: (3,) voxel size.
    """

    course: Course | None
    extent: CanalExtent
    spacing_mm: Floats

    def place(self, point_mm: npt.ArrayLike) -> float:
        """Return how far down the canal a point lies, mm; if there is no canal, how far below the origin."""
        return float(self.places(point_mm)[0])

    def places(self, points_mm: npt.ArrayLike) -> Floats:
        """Return the ``place`` of each of (m, 3) points."""
        points = np.asarray(points_mm, dtype=np.float64).reshape(-1, 3)
        return self.course.locate(points) if self.course is not None else -points[:, 2]

    def is_anterior(self, point_vox: npt.ArrayLike) -> bool:
        """Return whether a point is anterior to the canal, at the nearest height with canal; False without one."""
        if self.extent.z.size == 0:
            return False
        _, y, z = np.asarray(point_vox, dtype=np.float64)
        return bool(y > self.extent.y_last[np.abs(self.extent.z - z).argmin()])

    def middle(self, z: npt.NDArray[np.intp]) -> Floats:
        """Return the middle of the canal from right to left at each of (n,) heights, voxel indices; 0 without one."""
        middle = (self.extent.x_first + self.extent.x_last) / 2
        return np.asarray(np.interp(z, self.extent.z, middle) if middle.size else np.zeros(z.shape))

    def in_front(self, xyz: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        """Return which voxels are anterior to the canal and within its width, at the nearest height with canal.

        Args:
            xyz: (n, 3) voxel indices. Not modified.

        Returns:
            (n,) bools; all False without a canal.
        """
        return self.extent.has_in_front(*xyz.T)


def ruler_along(points_vox: npt.ArrayLike, spacing_mm: npt.ArrayLike) -> Ruler:
    """Return a ruler along the bodies of a column whose canal is not segmented.

    Args:
        points_vox: (n, 3) middles of bodies and discs, RAS voxel indices, in any order. Not modified.
        spacing_mm: (3,) voxel size.

    Returns:
        A ruler that knows places but not the canal; without any point it measures the height.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    points = np.asarray(points_vox, dtype=np.float64).reshape(-1, 3)
    order = np.argsort(points[:, 2])
    return Ruler(
        _course(points[order, 2], points[order, :2], spacing), canal_extent(np.zeros((1, 1, 1), bool)), spacing
    )


def ruler_of(canal: Mask, spacing_mm: npt.ArrayLike) -> Ruler:
    """Return a ruler along a canal.

    Args:
        canal: bool (X, Y, Z) RAS, canal or cord. Not modified.
        spacing_mm: (3,) voxel size.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    extent = canal_extent(canal)
    middle = np.stack([(extent.x_first + extent.x_last) / 2, (extent.y_first + extent.y_last) / 2], axis=1)
    return Ruler(_course(extent.z, middle, spacing), extent, spacing)


def _course(heights: npt.NDArray[Any], middle: npt.NDArray[Any], spacing_mm: Floats) -> Course | None:
    """Return the smooth line through points at rising heights, voxel indices; None without points."""
    if heights.size == 0:
        return None
    z = np.arange(heights[0], heights[-1] + 1)
    line = np.stack([np.interp(z, heights, middle[:, a]) for a in range(2)], axis=1)
    line = gaussian_filter1d(line, COURSE_SMOOTHING_MM / spacing_mm[2], axis=0, mode="nearest")
    points = (np.column_stack([line, z]) * spacing_mm)[::-1]
    points = _continued(points, float(spacing_mm[2]))
    distance = np.concatenate([[0.0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()])
    return Course(points, distance - BEYOND_MM)


def _continued(points: Floats, step_mm: float) -> Floats:
    """Return the line with both ends continued straight, one point per mm."""
    reach = max(1, min(len(points) - 1, round(TANGENT_MM / step_mm)))
    down = np.array([0.0, 0.0, -1.0])
    first = points[reach] - points[0] if len(points) > 1 else down
    last = points[-1] - points[-1 - reach] if len(points) > 1 else down
    away = np.arange(1.0, BEYOND_MM + 1)[:, None]
    above = points[0] - away[::-1] * first / np.linalg.norm(first)
    below = points[-1] + away * last / np.linalg.norm(last)
    return np.concatenate([above, points, below])
