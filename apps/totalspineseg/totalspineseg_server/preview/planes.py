"""Find the curved planes of a scan."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from totalspineseg_server.anatomy import BACKGROUND, CANAL, CORD, DISCS
from totalspineseg_server.geometry import Grid, LabelArray, Volume, to_ras

MARGIN_MM: Final = 50.0
"""Margin in front of, behind and beside the spine: the picture shows the parts that a reader needs, enlarged."""
SMOOTHING_MM: Final = 8.0
"""Standard deviation of the plane's smoothing: less than a vertebra, more than the steps between voxels."""


@dataclass(frozen=True)
class Course:
    """Course of the two curved planes, on the nearest-RAS form of a grid.

    Attributes:
        x: (Z,) sagittal plane, voxel index along x at every height.
        y: (Z,) coronal plane, voxel index along y at every height.
        canal_y: (Z,) the canal, voxel index along y; bodies are anterior to it.
        x_range: First and last voxel along x in the coronal picture.
        y_range: First and last voxel along y in the sagittal picture.
    """

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    canal_y: npt.NDArray[np.float64]
    x_range: tuple[int, int]
    y_range: tuple[int, int]


def course_of(labels: LabelArray | None, grid: Grid) -> Course:
    """Return the planes through a labeled spine; compute them once for all pictures of a scan.

    Args:
        labels: Codes on ``grid``, any orientation; None if there are none yet. Not modified.
        grid: Grid of the image.

    Returns:
        The course. Without a canal (or discs) it runs through the middle of the image; without labels the picture has
        the whole width.
    """
    ras = to_ras(Volume(np.broadcast_to(np.uint8(0), grid.shape) if labels is None else labels, grid.affine))
    middle_x, middle_y = ((n - 1) / 2 for n in ras.data.shape[:2])
    width, depth, height = ras.data.shape
    if labels is None:
        flat_y = np.full(height, middle_y)
        return Course(np.full(height, middle_x), flat_y, flat_y, (0, width - 1), (0, depth - 1))
    kinds = _KIND_OF_CODE[np.ascontiguousarray(ras.data)]
    sigma = SMOOTHING_MM / ras.spacing[2]
    canal, disc = kinds == 1, kinds == 2
    canal_y = _mean_index(canal, 1, sigma, middle_y)
    outline = kinds.any(axis=2)
    return Course(
        _mean_index(canal, 0, sigma, middle_x),
        _mean_index(disc, 1, sigma, float(canal_y.mean())),
        canal_y,
        _visible_range(outline.any(axis=1), MARGIN_MM / ras.spacing[0]),
        _visible_range(outline.any(axis=0), MARGIN_MM / ras.spacing[1]),
    )


def _visible_range(occupied: npt.NDArray[np.bool_], margin_vox: float) -> tuple[int, int]:
    """Return the first and last index to show: the spine and a margin; everything if there is no spine."""
    at = np.flatnonzero(occupied)
    if at.size == 0:
        return 0, occupied.size - 1
    return max(int(at[0] - margin_vox), 0), min(int(at[-1] + margin_vox), occupied.size - 1)


def _kinds() -> npt.NDArray[np.uint8]:
    table = np.full(256, 3, dtype=np.uint8)
    table[BACKGROUND] = 0
    table[[CANAL, CORD]] = 1
    table[list(DISCS)] = 2
    return table


_KIND_OF_CODE: Final = _kinds()


def _mean_index(mask: npt.NDArray[np.bool_], axis: int, sigma: float, default: float) -> npt.NDArray[np.float64]:
    """Return the mean index of a mask along an axis at every height, gaps interpolated, smoothed."""
    counts = mask.sum(axis=1 - axis, dtype=np.int32)
    total = counts.sum(axis=0)
    z = np.flatnonzero(total)
    if z.size == 0:
        return np.full(mask.shape[2], default)
    mean = (np.arange(mask.shape[axis]) @ counts[:, z]) / total[z]
    line = np.interp(np.arange(mask.shape[2]), z, mean)
    smooth: npt.NDArray[np.float64] = ndimage.gaussian_filter1d(line, sigma, mode="nearest")
    return smooth
