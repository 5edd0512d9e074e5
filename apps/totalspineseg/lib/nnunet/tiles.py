"""Sliding window: tiles over the image, their logits summed under a Gaussian.

Source: nnU-Net 2's inference (tile positions, Gaussian, half-precision sums), so that results agree with it voxel
for voxel; mirroring is left out.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from scipy import ndimage

Shape = tuple[int, int, int]
Network = Callable[[torch.Tensor], torch.Tensor]

SIGMA_SCALE: Final = 1 / 8
"""Standard deviation of the Gaussian as a part of the tile (nnU-Net's value)."""
PEAK: Final = 10.0
"""Weight at a tile's center: uses the range of half precision well (nnU-Net's value)."""


@lru_cache(maxsize=4)
def gaussian_weights(patch: Shape) -> torch.Tensor:
    """Weight of each voxel of a tile: ``PEAK`` at the center, never 0 (half precision, shared: do not write)."""
    impulse = np.zeros(patch)
    impulse[tuple(n // 2 for n in patch)] = 1
    weights = ndimage.gaussian_filter(impulse, [n * SIGMA_SCALE for n in patch], mode="constant", cval=0)
    half = torch.from_numpy(weights * (PEAK / weights.max())).to(torch.float16)
    half[half == 0] = half[half > 0].min()
    return half


def tile_starts(length: int, tile: int, step: float) -> list[int]:
    """First voxel of each tile along one axis: evenly spread, at most ``step`` tiles apart, ends included.

    Args:
        length: Voxels of the (padded) image, at least ``tile``.
        tile: Voxels of a tile.
        step: Distance of neighbors in tiles, above 0 and at most 1.
    """
    count = int(np.ceil((length - tile) / (tile * step))) + 1
    if count == 1:
        return [0]
    return [int(np.round((length - tile) / (count - 1) * i)) for i in range(count)]


def padding(shape: Sequence[int], patch: Sequence[int]) -> list[tuple[int, int]]:
    """Voxels to add before and after each axis so that a tile fits; the image stays in the middle."""
    missing = [max(0, tile - length) for length, tile in zip(shape, patch, strict=True)]
    return [(n // 2, n - n // 2) for n in missing]


def sliding_logits(
    network: Network,
    image: torch.Tensor,
    patch: Shape,
    regions: int,
    *,
    step: float,
    compute: torch.device,
    sums: torch.device,
    half: bool = True,
) -> torch.Tensor:
    """Run the network over the whole image.

    Args:
        network: (1, C, *patch) -> (1, R, *patch) logits, on ``compute``.
        image: (C, ...) float32, network's axes, normalized. Not modified.
        patch: Tile size.
        regions: R, number of output channels.
        step: Distance of neighboring tiles in tiles.
        compute: Where the network runs.
        sums: Where the logits are summed; the CPU when the GPU is too small for them.
        half: Sum in half precision, as nnU-Net does, and on a GPU compute in it too.

    Returns:
        (R, ...) logits on ``sums``, half or float32, same spatial shape as the image.
    """
    pads = padding(image.shape[1:], patch)
    flat = [n for pair in reversed(pads) for n in pair]
    data = torch.nn.functional.pad(image, flat).to(sums)
    dtype = torch.float16 if half else torch.float32
    weights = gaussian_weights(patch).to(device=sums, dtype=dtype)
    total = torch.zeros((regions, *data.shape[1:]), dtype=dtype, device=sums)
    weight = torch.zeros(data.shape[1:], dtype=dtype, device=sums)
    starts = [tile_starts(n, tile, step) for n, tile in zip(data.shape[1:], patch, strict=True)]
    with torch.inference_mode(), torch.autocast(compute.type, enabled=half and compute.type == "cuda"):
        for corner in itertools.product(*starts):
            where = tuple(slice(start, start + tile) for start, tile in zip(corner, patch, strict=True))
            tile_logits = network(data[(slice(None), *where)][None].to(compute).contiguous())[0].to(sums)
            total[(slice(None), *where)] += tile_logits * weights
            weight[where] += weights
    inner = tuple(slice(before, n - after) for (before, after), n in zip(pads, data.shape[1:], strict=True))
    return total[(slice(None), *inner)].div_(weight[inner])
