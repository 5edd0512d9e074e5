"""Measure distances along the canal, the ruler for everything else."""

from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree

from totalspineseg_server.anatomy import Kind
from totalspineseg_server.transforms.canal import CanalExtent, canal_extent
from totalspineseg_server.transforms.components import Box, Labels, Mask
from totalspineseg_server.transforms.pieces import MIN_BODY_VOXELS, Piece

Floats = npt.NDArray[np.float64]

SMOOTHING_MM: Final = 8.0
"""Standard deviation of the smoothing of the canal's middle. It removes steps between voxels and keeps every real
curve, because a curve of the spine is longer than 60 mm.
"""
TANGENT_MM: Final = 25.0
"""Length of the end piece whose direction continues the line beyond the canal."""
BEYOND_MM: Final = 80.0
"""Length by which the line is continued at both ends."""


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
    line = gaussian_filter1d(line, SMOOTHING_MM / spacing_mm[2], axis=0, mode="nearest")
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


def describe(kind: Kind, xyz: npt.NDArray[np.intp], raw: Labels, ruler: Ruler) -> Piece:
    """Return the piece that some voxels form.

    Args:
        kind: Disc, vertebra or sacrum.
        xyz: (n, 3) voxel indices, at least one. Not modified.
        raw: uint8 (X, Y, Z) RAS, network classes. Not modified.
        ruler: Canal of ``raw``.
    """
    center = xyz.mean(axis=0)
    body = xyz if kind is Kind.DISC else xyz[ruler.in_front(xyz)]
    has_body = kind is Kind.DISC or len(body) >= MIN_BODY_VOXELS
    middle = body.mean(axis=0) if has_body else center
    points = ruler.extent.points
    height = points[((points - middle) ** 2).sum(axis=1).argmin(), 2] if len(points) else middle[2]
    counts = np.bincount(raw[xyz[:, 0], xyz[:, 1], xyz[:, 2]])
    low, high = xyz.min(axis=0).tolist(), (xyz.max(axis=0) + 1).tolist()
    box: Box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    return Piece(
        kind=kind,
        voxels=len(xyz),
        centroid_vox=(float(center[0]), float(center[1]), float(center[2])),
        body_voxels=len(body) if has_body else 0,
        body_centroid_vox=(float(middle[0]), float(middle[1]), float(middle[2])) if has_body else None,
        z_order=float(height),
        box=box,
        class_voxels=MappingProxyType({int(c): int(counts[c]) for c in np.flatnonzero(counts)}),
    )
