"""Find where an image holds nothing but air: noise, far darker than tissue.

It is used for weights with which leaving out air was compared with computing everything (see ``focus``).
"""

from typing import Final

import torch

from totalspineseg_server.nnunet.preprocessing import Box

BLOCK: Final = 2
"""Side of the cubes whose mean counts, voxels: in the mean of eight voxels, noise is a third of what it is in one."""
SHARE: Final = 0.15
"""Largest level of a cube of air, as a share of the way from the darkest cubes to the level that best divides dark
from bright. It is low, because tissue far from a surface coil is dark. Chosen, not measured."""
DARKEST: Final = 0.01
"""Share of the cubes that count as the darkest."""
BINS: Final = 256
SPECKS: Final = 0.002
"""Largest share of bright cubes in a slice or a tile that still counts as air, because noise has some. A vertebra
fills more."""


def tissue(image: torch.Tensor) -> torch.Tensor:
    """Return which cubes of ``BLOCK`` voxels a side hold more than air: bool, an axis of n voxels has n / 2 of them,
    rounded up.

    Args:
        image: (A, B, C) float32, in any scale. Not modified.
    """
    pool = torch.nn.functional.avg_pool3d
    means = pool(image[None, None], BLOCK, ceil_mode=True, count_include_pad=False)[0, 0]
    return means > _air_level(means)


def tissue_box(image: torch.Tensor) -> Box:
    """Return the smallest box with everything that is not air; the whole image if all of it looks alike.

    Args:
        image: See ``tissue``. Not modified.
    """
    cubes = tissue(image)
    spans = []
    for axis, length in enumerate(image.shape):
        others = tuple(other for other in range(3) if other != axis)
        hits = (cubes.float().mean(dim=others) > SPECKS).nonzero()
        if len(hits) == 0:
            return slice(0, image.shape[0]), slice(0, image.shape[1]), slice(0, image.shape[2])
        spans.append(slice(BLOCK * int(hits[0]), min(length, BLOCK * (int(hits[-1]) + 1))))
    return spans[0], spans[1], spans[2]


def is_in_tile(cubes: torch.Tensor, tile: Box) -> bool:
    """Return whether a tile holds more than air.

    Args:
        cubes: From ``tissue``.
        tile: The tile, voxels; its parts outside the image are padding.
    """
    part = tuple(slice(max(0, axis.start) // BLOCK, max(0, -(-axis.stop // BLOCK))) for axis in tile)
    inside = cubes[part]
    return bool(inside.count_nonzero() > SPECKS * inside.numel())


def _air_level(means: torch.Tensor) -> float:
    """Return the largest mean of air; the level that divides dark and bright is Otsu's."""
    low, high = (float(value) for value in torch.aminmax(means))
    if not low < high:
        return high
    counts = torch.histc(means, BINS, low, high).double()
    centers = torch.linspace(low, high, 2 * BINS + 1, dtype=torch.float64)[1::2].to(counts.device)
    below = counts.cumsum(0)
    mass = (counts * centers).cumsum(0)
    total, all_mass = below[-1], mass[-1]
    between = (all_mass * below - mass * total) ** 2 / (below * (total - below)).clamp(min=1)
    divide = float(centers[int(between.argmax())])
    darkest = float(centers[int(torch.searchsorted(below, DARKEST * total))])
    return darkest + SHARE * (divide - darkest)
