"""Preprocess images for a network: crop to the nonzero box, normalize, and resample to the plans' spacing.

Both grids cover the same box; the first and last voxels are extended outward. Each axis is multiplied by a matrix with
two weights in each column, strip by strip, which is faster than gathering neighbors.

Source: the order of operations of nnU-Net 2's DefaultPreprocessor. Different here: resampling is always linear (the
    official plans are at 1 mm, where nothing is resampled).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from totalspineseg_server.geometry import LabelArray

FloatArray = npt.NDArray[np.float32]
Box = tuple[slice, slice, slice]

MIN_STD: Final = 1e-8
"""Smallest divisor of the Z-score, so that a constant image becomes 0 and not NaN."""
Shape = tuple[int, int, int]

STRIP: Final = 32
"""Number of voxels along an axis that a CPU computes at a time: their matrix has few zeros."""


def nonzero_box(channels: FloatArray) -> Box | None:
    """Return the smallest box with all voxels in which any channel differs from 0; None if there is none.

    Args:
        channels: (C, ...) with three spatial axes. Not modified.
    """
    nonzero = np.any(channels != 0, axis=0)
    spans = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        hits = np.flatnonzero(nonzero.any(axis=others))
        if hits.size == 0:
            return None
        spans.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return spans[0], spans[1], spans[2]


def common_box(box: Box, other: Box) -> Box | None:
    """Return the common part of two boxes; None if there is none."""
    x, y, z = (slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, other, strict=True))
    return (x, y, z) if all(axis.start < axis.stop for axis in (x, y, z)) else None


def normalize(channels: torch.Tensor, schemes: Sequence[str], inside_only: Sequence[bool]) -> torch.Tensor:
    """Normalize each channel as in the plans, on the device of the channels.

    Args:
        channels: (C, ...) float32, cropped. Not modified.
        schemes: "ZScoreNormalization" or "NoNormalization" per channel.
        inside_only: For each channel: whether to use the mean and deviation inside the (hole-filled) nonzero mask, and
            normalize only there.

    Returns:
        A new, contiguous tensor of the same shape.
    """
    inside = None
    if any(inside_only):
        filled = ndimage.binary_fill_holes((channels != 0).any(dim=0).cpu().numpy())
        inside = torch.from_numpy(filled).to(channels.device)
    result = torch.empty(channels.shape, device=channels.device)
    for values, channel, scheme, masked in zip(result, channels, schemes, inside_only, strict=True):
        if scheme == "NoNormalization":
            values.copy_(channel)
        elif masked and inside is not None:
            values.copy_(channel)
            part = channel[inside]
            values[inside] = _standardize(part, out=part)
        else:
            _standardize(channel, out=values)
    return result


def _standardize(values: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    """Write values with mean 0 and deviation 1 into ``out``, and return it."""
    torch.sub(values, values.mean(), out=out)
    return out.div_(out.square().mean().sqrt().clamp(min=MIN_STD))


def resampled_shape(shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]) -> Shape:
    """Return the number of voxels of a box after resampling, at least one for each axis.

    Args:
        shape: Voxels before.
        spacing_mm: Voxel size before, mm.
        target_mm: Voxel size after, mm.
    """
    a, b, c = (max(1, round(n * mm / to)) for n, mm, to in zip(shape, spacing_mm, target_mm, strict=True))
    return a, b, c


def resample(image: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Resample to another number of voxels over the same box.

    Args:
        image: (..., A, B, C) float32. Not modified.
        shape: Shape of the result.

    Returns:
        A new tensor, or ``image`` itself if it has that shape already.
    """
    if tuple(image.shape[-3:]) == shape:
        return image
    axes = [_neighbors(before, after) for before, after in zip(image.shape[-3:], shape, strict=True)]
    return _resampled(image, axes)


def nearest(codes: LabelArray, shape: Sequence[int]) -> LabelArray:
    """Return a label map with another number of voxels over the same box, each the nearest one.

    Args:
        codes: uint8 (A, B, C). Not modified.
        shape: Voxels wanted.
    """
    values = torch.from_numpy(np.ascontiguousarray(codes))[None, None].float()
    found = torch.nn.functional.interpolate(values, size=list(shape), mode="nearest-exact")[0, 0]
    result: LabelArray = found.to(torch.uint8).numpy()
    return result


def scaled(part: slice, before: int, after: int) -> slice:
    """Return a part of an axis, to the nearest voxel, after the axis was resampled from ``before`` voxels to
    ``after``."""
    return slice(round(part.start * after / before), round(part.stop * after / before))


def resample_above(
    image: torch.Tensor, shape: Shape, threshold: float = 0.0, *, within: tuple[Box, Shape] | None = None
) -> tuple[torch.Tensor, Box] | None:
    """Resample only the box that contains all values above a threshold; see ``resample``.

    An interpolated value is above the threshold only if a neighbor is, so most of the work for small structures can be
    left out without changing any value above the threshold.

    Args:
        image: (A, B, C) float32. Not modified.
        shape: Shape of the whole result.
        threshold: Values outside the box do not exceed it.
        within: If ``image`` is only a part of an image: this part, and the shape of that image. Only the same part of
            the result is computed, see ``scaled``.

    Returns:
        The values inside the box, and the box in the resulting grid; None if no value is above the threshold.
    """
    grid: Sequence[int] = image.shape
    part = _whole(image.shape)
    if within is not None:
        part, grid = within
    above = image > threshold
    axes, box = [], []
    for axis in range(3):
        hits = above.amax(dim=tuple(other for other in range(3) if other != axis)).cpu()
        neighbors = _neighbors(grid[axis], shape[axis], part[axis])
        touched = (hits[neighbors.lower] | hits[neighbors.upper]).nonzero()
        if len(touched) == 0:
            return None
        touching = slice(int(touched[0]), int(touched[-1]) + 1)
        first = scaled(part[axis], grid[axis], shape[axis]).start
        axes.append(neighbors.only(touching))
        box.append(slice(first + touching.start, first + touching.stop))
    return _resampled(image, axes), (box[0], box[1], box[2])


@dataclass(frozen=True)
class _Neighbors:
    """The voxels of a resampled axis lie between these voxels of the axis before.

    Attributes:
        lower: The nearest voxel before each.
        upper: The nearest voxel after each; at the ends the same as ``lower``.
        weight: Weight of the upper one; None if each voxel is its lower neighbor.
    """

    lower: torch.Tensor
    upper: torch.Tensor
    weight: torch.Tensor | None

    def only(self, part: slice) -> "_Neighbors":
        """Return the neighbors of some of the voxels."""
        return _Neighbors(self.lower[part], self.upper[part], None if self.weight is None else self.weight[part])


def _whole(shape: Sequence[int]) -> Box:
    return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])


def _neighbors(before: int, after: int, part: slice | None = None) -> _Neighbors:
    """Return the neighbors of the voxel centers of an axis of ``after`` voxels on one of ``before`` voxels over the
    same length; with a part of the latter, only those of the same part, counted from its start."""
    part = part or slice(0, before)
    inside = scaled(part, before, after)
    voxels = torch.arange(inside.start, inside.stop, dtype=torch.float64)
    if before == after:
        lower = voxels.long() - part.start
        return _Neighbors(lower, lower, None)
    positions = ((voxels + 0.5) * (before / after) - 0.5).clamp(part.start, part.stop - 1) - part.start
    lower = positions.floor().long()
    upper = (lower + 1).clamp(max=part.stop - part.start - 1)
    return _Neighbors(lower, upper, (positions - lower).float())


def _resampled(image: torch.Tensor, axes: Sequence[_Neighbors]) -> torch.Tensor:
    """Return an image with other voxels along its last three axes; those that shrink most come first to save work."""
    sizes = [(axis - 3, image.shape[axis - 3], neighbors) for axis, neighbors in enumerate(axes)]
    for axis, _, neighbors in sorted(sizes, key=lambda size: len(size[2].lower) / size[1]):
        if neighbors.weight is None:
            image = image.narrow(axis, int(neighbors.lower[0]), len(neighbors.lower))
        else:
            image = _along(image, axis, neighbors.lower, neighbors.upper, neighbors.weight)
    return image


def _along(
    image: torch.Tensor, axis: int, lower: torch.Tensor, upper: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Return one axis (-1, -2 or -3) resampled."""
    # A GPU computes the whole matrix at once faster than its strips.
    strip = STRIP if image.device.type == "cpu" else len(lower)
    strips = (slice(start, start + strip) for start in range(0, len(lower), strip))
    made = [_strip_along(image, axis, lower[s], upper[s], weight[s]) for s in strips]
    return made[0] if len(made) == 1 else torch.cat(made, dim=axis)


def _strip_along(
    image: torch.Tensor, axis: int, lower: torch.Tensor, upper: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Return some voxels along an axis from their neighbors, see ``_neighbors``."""
    first, last = int(lower[0]), int(upper[-1])
    matrix = torch.zeros(last + 1 - first, len(lower))
    columns = torch.arange(len(lower))
    matrix[lower - first, columns] = 1 - weight
    # At the ends both neighbors are the same voxel, so the weights are added.
    matrix[upper - first, columns] += weight
    matrix = matrix.to(image.device)
    image = image.narrow(axis, first, last + 1 - first)
    if axis == -1:
        return image @ matrix
    if axis == -2:
        return matrix.T @ image
    planes = image.flatten(-2)
    return (matrix.T @ planes).unflatten(-1, image.shape[-2:])
