"""Linear resampling between the 1 mm grid and the plans' spacing, of whole arrays or only of the part that matters.

Both grids cover the same box; the first and the last voxel are continued outward. One axis after the other, the
innermost first, so that the largest pass runs over whole rows.
"""

from collections.abc import Sequence

import torch

Box = tuple[slice, slice, slice]
Shape = tuple[int, int, int]
Table = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Per output voxel of one axis: lower neighbor, upper neighbor, weight of the upper one."""


def resampled_shape(shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]) -> Shape:
    """Voxels of a box after resampling, at least one an axis.

    Args:
        shape: Voxels before.
        spacing_mm: Voxel size before, mm.
        target_mm: Voxel size wanted, mm.
    """
    a, b, c = (max(1, round(n * mm / to)) for n, mm, to in zip(shape, spacing_mm, target_mm, strict=True))
    return a, b, c


def resample(image: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Another number of voxels over the same box.

    Args:
        image: (..., A, B, C) float32. Not modified.
        shape: Voxels wanted.

    Returns:
        A new tensor, or ``image`` itself when it has that shape already.
    """
    if tuple(image.shape[-3:]) == shape:
        return image
    return _interpolate(image, _tables(image, shape))


def resample_positive(image: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, Box] | None:
    """Like ``resample``, but only the box outside of which no value is above 0.

    A linear interpolation is above 0 only where one of its neighbors is, so most of the work on small structures
    can be left out without changing the result.

    Args:
        image: (A, B, C) float32. Not modified.
        shape: Voxels wanted.

    Returns:
        The values inside the box, and the box in the wanted grid; None when no value is above 0.
    """
    if tuple(image.shape) == shape:
        return (image, _whole(shape)) if bool(image.max() > 0) else None
    tables, box = [], []
    positive = image > 0
    for axis, table in enumerate(_tables(image, shape)):
        hits = positive.amax(dim=tuple(other for other in range(3) if other != axis))
        touched = (hits[table[0]] | hits[table[1]]).nonzero()
        if len(touched) == 0:
            return None
        part = slice(int(touched[0]), int(touched[-1]) + 1)
        tables.append((table[0][part], table[1][part], table[2][part]))
        box.append(part)
    return _interpolate(image, tables), (box[0], box[1], box[2])


def _whole(shape: Shape) -> Box:
    return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])


def _tables(image: torch.Tensor, shape: Shape) -> list[Table]:
    return [_table(before, after, image.device) for before, after in zip(image.shape[-3:], shape, strict=True)]


def _table(before: int, after: int, device: torch.device) -> Table:
    """Neighbors and weights of ``after`` voxel centers among ``before`` ones over the same length."""
    centers = torch.arange(after, dtype=torch.float64) + 0.5
    positions = (centers * (before / after) - 0.5).clamp(0, before - 1)
    lower = positions.floor().long()
    upper = (lower + 1).clamp(max=before - 1)
    return lower.to(device), upper.to(device), (positions - lower).float().to(device)


def _interpolate(image: torch.Tensor, tables: Sequence[Table]) -> torch.Tensor:
    for axis in (-1, -2, -3):
        lower, upper, weight = tables[axis]
        column = weight.view(-1, *[1] * (-1 - axis))
        image = torch.lerp(image.index_select(axis, lower), image.index_select(axis, upper), column)
    return image
