"""Work with grids in patient space: volumes, nearest-RAS orientation, the 1 mm grid and the way back.

The 1 mm grid of a scan has the scan's own (nearest-RAS) axes and the same center and extent, so
both directions are separable: one index or weight table for each axis. Coordinates are rounded once, in
``_positions``, so that a voxel center lying exactly between two others always falls to the same side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel import orientations
from nibabel.affines import apply_affine
from scipy import ndimage

from totalspineseg_server.errors import GridError, ImageError

Affine = npt.NDArray[np.float64]
FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.uint8]
AnyArray = npt.NDArray[Any]
Positions = npt.NDArray[np.float64]

ISO_MM = 1.0
"""Spacing the networks were trained at, mm."""
COORDINATE_DECIMALS = 4
"""Number of decimals of voxel coordinates: NIfTI headers store affines as float32, whose error is below 1e-4 voxel."""
SAME_VOXEL = 0.25
"""Largest distance along each axis, in voxels, at which voxels of two grids count as the same: more than the rounding
of headers, less than half a voxel.
"""
PLANES = 4
"""Number of planes that are interpolated at a time. Each takes some hundred kB, so all fit into the cache of a core."""
MAX_SKEW_DEG = 1.0
"""Largest deviation of two axes from a right angle in an image that is not skewed; rounded headers stay below a tenth
of it. With more, sizes and angles cannot be measured precisely, and viewers place the image differently."""
MAX_ISO_VOXELS = 512 * 512 * 1024
"""Largest scan at 1 mm (a box of 0.5 m x 0.5 m x 1 m); a larger one has a wrong header."""


@dataclass(frozen=True)
class Grid:
    """A voxel grid in patient space.

    Attributes:
        shape: Voxels along the three array axes.
        affine: (4, 4) float64, voxel index -> RAS mm.
    """

    shape: tuple[int, int, int]
    affine: Affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along the three array axes, mm."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(x), float(y), float(z)

    @property
    def skew_deg(self) -> float:
        """The largest deviation of two axes from a right angle, degrees; headers of registered images may be skewed."""
        axes = self.affine[:3, :3] / np.array(self.spacing)
        return float(np.degrees(np.arcsin(np.abs(np.triu(axes.T @ axes, 1)).max())))

    @property
    def is_skewed(self) -> bool:
        """Whether the axes are not at right angles (see ``MAX_SKEW_DEG``)."""
        return self.skew_deg > MAX_SKEW_DEG

    @property
    def at_right_angles(self) -> "Grid":
        """The grid with the nearest axes at right angles: what ITK, and so 3D Slicer, writes into the header of a NIfTI
        file for a skewed image."""
        left, _, right = np.linalg.svd(self.affine[:3, :3] / np.array(self.spacing))
        affine = self.affine.copy()
        affine[:3, :3] = left @ right * np.array(self.spacing)
        return Grid(self.shape, affine)

    @property
    def orientation(self) -> str:
        """Nearest anatomical axis codes, such as "RAS"."""
        return "".join(orientations.aff2axcodes(self.affine))


@dataclass(frozen=True)
class Volume:
    """An array on a grid.

    Attributes:
        data: (X, Y, Z) array. Not copied; do not write to it.
        affine: (4, 4) float64, voxel index -> RAS mm.

    Raises:
        ImageError: The array is not 3D or the affine cannot be inverted.
    """

    data: AnyArray
    affine: Affine

    def __post_init__(self) -> None:
        if self.data.ndim != 3:
            raise ImageError(f"expected a 3D volume, got an array of shape {self.data.shape}")
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise ImageError(
                "The header does not say where the voxels lie in the patient: its matrix, "
                f"{affine.tolist()!r}, is not an invertible 4x4 matrix. Export the series again with its geometry."
            )
        object.__setattr__(self, "affine", affine)

    @property
    def grid(self) -> Grid:
        """The grid without the data."""
        x, y, z = self.data.shape
        return Grid((x, y, z), self.affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along the three array axes, mm."""
        return self.grid.spacing


def same_grid(first: Grid, second: Grid) -> bool:
    """Return whether two grids have the same voxels in the same index order, so that their arrays can be compared."""
    return _index_order(first, second) == ((0, 1, 2), (False, False, False))


def same_voxels(first: Grid, second: Grid) -> bool:
    """Return whether two grids have the same voxels, in any index order."""
    return _index_order(first, second) is not None


def on_grid(labels: Volume, grid: Grid) -> Volume:
    """Return a label map in the index order of its image: programs flip and permute axes when they load and save.

    Args:
        labels: Label map on the voxels of ``grid``, in any index order. Not modified.
        grid: Grid of its image.

    Returns:
        View of the labels, on ``grid``.

    Raises:
        GridError: The label map has other voxels; the message says how far the corners are apart.
    """
    found = _index_order(labels.grid, grid)
    if found is None:
        raise GridError(
            f"The label does not lie on the voxels of its image: it has {_described(labels.grid)}, the image has "
            f"{_described(grid)}, and their corners are up to {_corner_distance_mm(labels.grid, grid):.3g} mm apart. "
            f"{skew_remedy(grid) or 'Export it with the image as reference volume.'}"
        )
    axes, flipped = found
    data = labels.data.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flipped)]
    return Volume(data, grid.affine)


def skew_remedy(grid: Grid) -> str:
    """Return what to do about an image whose axes are not at right angles; "" if they are."""
    if not grid.is_skewed:
        return ""
    return (
        f"The header skews the image by {grid.skew_deg:.0f} degrees: its axes are not at right angles. Programs place "
        "such an image differently or refuse it, and its heights, areas and angles are not measured. Resample it with "
        "nibabel.processing.resample_to_output, and segment and label the new file."
    )


IndexOrder = tuple[tuple[int, ...], tuple[bool, ...]]
"""The axis of one grid for each axis of another one, and whether it runs the other way."""


def _index_order(source: Grid, target: Grid) -> IndexOrder | None:
    """Return how the axes of ``source`` must be permuted and flipped to become those of ``target``.

    Returns:
        None if the voxels differ: if a corner differs by more than ``SAME_VOXEL`` along an axis. A grid whose axes were
        put at right angles when it was written still has the voxels of the skewed one.
    """
    found = _aligned(source, target)
    return _aligned(source, target.at_right_angles) if found is None and target.is_skewed else found


def _aligned(source: Grid, target: Grid) -> IndexOrder | None:
    """Return the order of ``_index_order`` for two grids as they are."""
    mapping = np.linalg.inv(source.affine) @ target.affine
    axes = tuple(int(axis) for axis in np.abs(mapping[:3, :3]).argmax(axis=0))
    if sorted(axes) != [0, 1, 2] or tuple(source.shape[axis] for axis in axes) != target.shape:
        return None
    flipped = tuple(bool(mapping[axis, column] < 0) for column, axis in enumerate(axes))
    corners = _corners(target.shape)
    expected = np.empty_like(corners)
    for column, axis in enumerate(axes):
        index = corners[:, column]
        expected[:, axis] = source.shape[axis] - 1 - index if flipped[column] else index
    offset_vox = np.abs(apply_affine(mapping, corners) - expected)
    return (axes, flipped) if offset_vox.max() <= SAME_VOXEL else None


def _corners(shape: tuple[int, int, int]) -> Positions:
    """Return the indices of the eight corner voxels, (8, 3)."""
    return np.array(np.meshgrid(*[(0.0, n - 1.0) for n in shape], indexing="ij")).reshape(3, -1).T


def _corner_distance_mm(first: Grid, second: Grid) -> float:
    """Return the largest distance from a corner of one grid to the nearest corner of the other, mm."""
    one, other = (apply_affine(grid.affine, _corners(grid.shape)) for grid in (first, second))
    distances_mm = np.linalg.norm(one[:, np.newaxis] - other, axis=-1)
    return float(max(distances_mm.min(axis=0).max(), distances_mm.min(axis=1).max()))


def _described(grid: Grid) -> str:
    spacing = " x ".join(f"{size:.3g}" for size in grid.spacing)
    return f"shape {grid.shape}, {grid.orientation}, spacing {spacing} mm"


def _ras_orientation(affine: Affine) -> npt.NDArray[np.float64]:
    orientation: npt.NDArray[np.float64] = orientations.io_orientation(affine)
    return orientation


def to_ras(volume: Volume) -> Volume:
    """Return the same voxels with axes permuted and flipped to nearest RAS; the data are a view."""
    orientation = _ras_orientation(volume.affine)
    data = orientations.apply_orientation(volume.data, orientation)
    affine = volume.affine @ orientations.inv_ornt_aff(orientation, volume.data.shape)
    return Volume(data, affine)


def _from_ras(data: AnyArray, grid: Grid) -> AnyArray:
    """Undo ``to_ras``: return an array on the nearest-RAS form of ``grid`` in the axes of ``grid``."""
    ras = _ras_orientation(grid.affine)
    start = orientations.axcodes2ornt(("R", "A", "S"))
    back = orientations.ornt_transform(start, ras)
    result: AnyArray = orientations.apply_orientation(data, back)
    return result


def _ras_grid(grid: Grid) -> Grid:
    orientation = _ras_orientation(grid.affine)
    order = np.argsort(orientation[:, 0])
    x, y, z = (grid.shape[int(axis)] for axis in order)
    return Grid((x, y, z), grid.affine @ orientations.inv_ornt_aff(orientation, grid.shape))


def iso_grid(grid: Grid) -> Grid:
    """Return the isotropic 1 mm nearest-RAS grid with the same axes, center and (rounded) extent.

    Args:
        grid: Any grid.

    Returns:
        The grid; it equals ``grid`` if that is RAS and isotropic already.

    Raises:
        ImageError: The grid would be absurdly large, a sign of a wrong header.
    """
    ras = _ras_grid(grid)
    counts = [max(1, round(n * size / ISO_MM)) for n, size in zip(ras.shape, ras.spacing, strict=True)]
    if float(np.prod([float(n) for n in counts])) > MAX_ISO_VOXELS:
        raise ImageError(
            f"The field of view is too large: {counts[0]} x {counts[1]} x {counts[2]} voxels at {ISO_MM:g} "
            f"mm (limit {MAX_ISO_VOXELS} voxels). Check the voxel size in the header."
        )
    shape = (counts[0], counts[1], counts[2])
    scale = np.array([ISO_MM / size for size in ras.spacing])
    first = (np.array(ras.shape) - 1) / 2 - scale * (np.array(shape) - 1) / 2
    step = np.eye(4)
    step[:3, :3] = np.diag(scale)
    step[:3, 3] = first
    return Grid(shape, ras.affine @ step)


def _positions(source: int, target: int, source_mm: float, target_mm: float) -> Positions:
    """Return centers of ``target`` voxels in index coordinates of ``source`` voxels, both centered on each other."""
    offset = (source - 1) / 2 - (target - 1) / 2 * target_mm / source_mm
    return np.round(np.arange(target) * target_mm / source_mm + offset, COORDINATE_DECIMALS)


def _tables(source: Grid, target: Grid) -> list[Positions]:
    """Return ``_positions`` of the three axes."""
    axes = zip(source.shape, target.shape, source.spacing, target.spacing, strict=True)
    return [_positions(*axis) for axis in axes]


def _linear(data: FloatArray, positions: Sequence[Positions]) -> FloatArray:
    """Interpolate linearly and separably at these index coordinates of each axis; edges are extended."""
    # Process axes that shrink first, so that fewer voxels remain for the others.
    for axis in sorted(range(3), key=lambda i: len(positions[i]) / data.shape[i]):
        position = np.clip(positions[axis], 0, data.shape[axis] - 1)
        if not np.array_equal(position, np.arange(data.shape[axis])):
            data = _linear_along(data, axis, position)
    return data


def _linear_along(data: FloatArray, axis: int, position: Positions) -> FloatArray:
    """Interpolate one axis of ``_linear``, a few planes at a time, so that data that are read twice are still in the
    cache."""
    lower = np.minimum(position.astype(np.intp), max(data.shape[axis] - 2, 0))
    upper = np.minimum(lower + 1, data.shape[axis] - 1)
    weight_shape = [1, 1, 1]
    weight_shape[axis] = len(position)
    weight = (position - lower).astype(np.float32).reshape(weight_shape)
    shape = list(data.shape)
    shape[axis] = len(position)
    result = np.empty(shape, dtype=np.float32)
    split = 1 if axis == 0 else 0
    for first in range(0, shape[split], PLANES):
        planes = tuple(slice(first, first + PLANES) if i == split else slice(None) for i in range(3))
        start = np.take(data[planes], lower, axis=axis)
        step = np.take(data[planes], upper, axis=axis)
        step -= start
        step *= weight
        np.add(start, step, out=result[planes])
    return result


def _nearest(data: AnyArray, source: Grid, target: Grid) -> AnyArray:
    """Resample to the nearest voxel between grids with common axes and center; halves fall to the higher index."""
    tables = [
        np.clip(np.floor(position + 0.5).astype(np.intp), 0, n - 1)
        for position, n in zip(_tables(source, target), source.shape, strict=True)
    ]
    # Process one axis at a time, the last axis last, so that the bytes of a row are gathered while it is in the cache.
    for axis, table in enumerate(tables):
        if not np.array_equal(table, np.arange(data.shape[axis])):
            data = np.take(data, table, axis=axis)
    return data


def image_to_iso(volume: Volume) -> Volume:
    """Resample an image linearly to its 1 mm nearest-RAS grid.

    Args:
        volume: Image on any grid. Not modified.

    Returns:
        float32, C-ordered, on ``iso_grid(volume.grid)``.
    """
    ras = to_ras(volume)
    target = iso_grid(volume.grid)
    tables = _tables(ras.grid, target)
    if ras.data.flags.f_contiguous:
        # NIfTI data have the first axis fastest, and transposing the smaller result costs less than transposing the
        # image.
        turned = _linear(ras.data.T.astype(np.float32, order="C"), tables[::-1])
        return Volume(np.ascontiguousarray(turned.T), target.affine)
    return Volume(_linear(np.ascontiguousarray(ras.data, dtype=np.float32), tables), target.affine)


def labels_to_iso(volume: Volume) -> Volume:
    """Resample a label map to the nearest voxels of its 1 mm nearest-RAS grid. The argument is not modified."""
    ras = to_ras(volume)
    target = iso_grid(volume.grid)
    return Volume(np.array(_nearest(ras.data, ras.grid, target), order="C"), target.affine)


def labels_from_iso(labels: AnyArray, iso: Grid, grid: Grid) -> AnyArray:
    """Resample a label map on ``iso = iso_grid(grid)`` back to the nearest voxels of ``grid``.

    Args:
        labels: (X, Y, Z) labels on the isotropic grid. Not modified.
        iso: The isotropic grid of ``grid``.
        grid: The grid of the input image.

    Returns:
        Labels of ``grid.shape``, C-ordered, same dtype.

    Raises:
        GridError: ``labels`` does not have the shape of ``iso``.
    """
    _require_shape(labels, iso)
    return np.array(_from_ras(_nearest(labels, iso, _ras_grid(grid)), grid), order="C")


def soft_from_iso(soft: FloatArray, iso: Grid, grid: Grid) -> FloatArray:
    """Resample a probability map on ``iso = iso_grid(grid)`` linearly back to ``grid``. See ``labels_from_iso``.

    Only the box that is not 0 is interpolated, because a cord fills a hundredth of a scan.
    """
    _require_shape(soft, iso)
    ras = _ras_grid(grid)
    result = np.zeros(ras.shape, dtype=np.float32)
    occupied = [np.flatnonzero(soft.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if len(occupied[0]):
        tables = _tables(iso, ras)
        source, target, positions = [], [], []
        for indices, table, n in zip(occupied, tables, soft.shape, strict=True):
            start, stop = max(int(indices[0]) - 1, 0), min(int(indices[-1]) + 2, n)
            reached = np.flatnonzero((np.clip(table, 0, n - 1) >= start) & (np.clip(table, 0, n - 1) <= stop - 1))
            source.append(slice(start, stop))
            target.append(slice(int(reached[0]), int(reached[-1]) + 1) if len(reached) else slice(0, 0))
            positions.append(table[target[-1]] - start)
        result[tuple(target)] = _linear(soft[tuple(source)].astype(np.float32, copy=False), positions)
    return np.ascontiguousarray(_from_ras(result, grid))


def points_from_iso(points: LabelArray, iso: Grid, grid: Grid) -> LabelArray:
    """Move point labels on ``iso = iso_grid(grid)`` back to ``grid``: one voxel for each point, never lost or doubled.

    Args:
        points: (X, Y, Z) uint8, each nonzero voxel one point. Not modified.
        iso: The isotropic grid of ``grid``.
        grid: The grid of the input image.

    Returns:
        uint8 map of ``grid.shape``. If two points fall into one voxel, the more superior one stays.
    """
    _require_shape(points, iso)
    result = np.zeros(grid.shape, dtype=np.uint8)
    voxels = np.argwhere(points)
    to_grid = np.linalg.inv(grid.affine) @ iso.affine
    position = np.round(apply_affine(to_grid, voxels), COORDINATE_DECIMALS)
    index = np.clip(np.floor(position + 0.5).astype(np.intp), 0, np.array(grid.shape) - 1)
    for (x, y, z), voxel in sorted(zip(index.tolist(), voxels.tolist(), strict=True), key=lambda pair: pair[1][2]):
        result[x, y, z] = points[tuple(voxel)]
    return result


def _require_shape(data: AnyArray, grid: Grid) -> None:
    if data.shape != grid.shape:
        raise GridError(f"expected an array of shape {grid.shape}, got {data.shape}")


def labels_on_grid(labels: Volume, grid: Grid) -> AnyArray:
    """Resample a label map of the same patient (nearest voxel) to any other grid; 0 outside its field of view.

    Args:
        labels: Label map, such as a localizer series. Not modified.
        grid: Target grid.

    Returns:
        Labels of ``grid.shape``, same dtype; all 0 if the fields of view do not overlap.
    """
    if same_grid(labels.grid, grid):
        return np.array(labels.data)
    mapping = np.linalg.inv(labels.affine) @ grid.affine
    result: AnyArray = ndimage.affine_transform(
        labels.data, mapping[:3, :3], mapping[:3, 3], output_shape=grid.shape, order=0, mode="constant", cval=0
    )
    return result
