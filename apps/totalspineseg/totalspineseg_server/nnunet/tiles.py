"""Run a network over an image in overlapping tiles, whose logits are summed with Gaussian weights.

Source: nnU-Net 2's inference (tile positions, Gaussian). Different here: no mirroring, and sums in float32. In
    nnU-Net's half precision, small weights times a logit are rounded so much that logits in the corners of a volume
    become whole numbers; apart from that the results agree.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from scipy import ndimage

from totalspineseg_server.nnunet.air import is_in_tile, tissue

Shape = tuple[int, int, int]
Network = Callable[[torch.Tensor], torch.Tensor]
Tile = tuple[slice, ...]

SIGMA_SCALE: Final = 1 / 8
"""Standard deviation of the Gaussian as a share of the tile (nnU-Net's value)."""
PEAK: Final = 10.0
"""Weight at a tile's center, which suits the range of half precision (nnU-Net's value)."""
AIR_LOGIT: Final = -20.0
"""Logit of voxels that no tile has computed: no structure."""


@lru_cache(maxsize=4)
def gaussian_weights(patch: Shape) -> torch.Tensor:
    """Return the weights of a tile: ``PEAK`` at the center, never 0, rounded as in nnU-Net. Do not modify the
    result."""
    impulse = np.zeros(patch)
    impulse[tuple(n // 2 for n in patch)] = 1
    weights = ndimage.gaussian_filter(impulse, [n * SIGMA_SCALE for n in patch], mode="constant", cval=0)
    half = torch.from_numpy(weights * (PEAK / weights.max())).to(torch.float16)
    half[half == 0] = half[half > 0].min()
    return half.float()


def tile_starts(length: int, tile: int, step: float) -> list[int]:
    """Return the first voxel of each tile along one axis: evenly spaced, at most ``step`` tiles apart, ends included.

    Args:
        length: Voxels of the (padded) image, at least ``tile``.
        tile: Voxels of a tile.
        step: Distance between neighbors, as a share of a tile, above 0 and at most 1.
    """
    count = int(np.ceil((length - tile) / (tile * step))) + 1
    if count == 1:
        return [0]
    return [int(np.round((length - tile) / (count - 1) * i)) for i in range(count)]


def padding(shape: Sequence[int], patch: Sequence[int]) -> list[tuple[int, int]]:
    """Return the voxels to add before and after each axis so that a tile fits; the image stays in the middle."""
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
    autocast: bool,
    skip_air: bool = False,
) -> torch.Tensor:
    """Run the network over the whole image.

    If air is skipped, a tile that holds nothing else is computed only if a structure, as its neighbors see it, reaches
    into it. Where no tile was computed, there is no structure.

    Args:
        network: (1, C, *patch) -> (1, R, *patch) logits, on ``compute``.
        image: (C, ...) float32, network's axes, normalized. Not modified.
        patch: Tile size.
        regions: R, number of output channels.
        step: Distance between neighboring tiles, as a share of a tile.
        compute: Device of the network.
        sums: Device of the sums: the CPU if they do not fit on the GPU.
        autocast: Whether to compute in half precision where that is safe (on a GPU).
        skip_air: Whether to leave out tiles that hold only air, in the first channel, or padding.

    Returns:
        (R, ...) float32 logits on ``sums``, same spatial shape as the image.
    """
    pads = padding(image.shape[1:], patch)
    flat = [n for pair in reversed(pads) for n in pair]
    data = torch.nn.functional.pad(image, flat).to(sums)
    weights = gaussian_weights(patch).to(sums)
    total = torch.zeros((regions, *data.shape[1:]), device=sums)
    weight = torch.zeros(data.shape[1:], device=sums)
    starts = [tile_starts(n, tile, step) for n, tile in zip(data.shape[1:], patch, strict=True)]
    tiles = [
        tuple(slice(start, start + tile) for start, tile in zip(corner, patch, strict=True))
        for corner in itertools.product(*starts)
    ]
    skipped = _air_tiles(image[0], tiles, [before for before, _ in pads]) if skip_air else []
    due = [tile for tile in tiles if tile not in skipped]
    with torch.inference_mode(), torch.autocast(compute.type, enabled=autocast):
        while due:
            for where in due:
                tile_logits = network(data[(slice(None), *where)][None].to(compute).contiguous())[0]
                total[(slice(None), *where)].addcmul_(tile_logits.to(device=sums, dtype=torch.float32), weights)
                weight[where] += weights
            due = [where for where in skipped if bool((total[(slice(None), *where)] > 0).any())]
            skipped = [where for where in skipped if where not in due]
    inner = tuple(slice(before, n - after) for (before, after), n in zip(pads, data.shape[1:], strict=True))
    if skipped:
        total.masked_fill_(weight == 0, AIR_LOGIT)
        weight.masked_fill_(weight == 0, 1)
    return total[(slice(None), *inner)].div_(weight[inner])


def _air_tiles(image: torch.Tensor, tiles: Sequence[Tile], before: Sequence[int]) -> list[Tile]:
    """Return the tiles that hold only air or padding; none if all do.

    Args:
        image: (A, B, C) without padding.
        tiles: Tiles of the padded image.
        before: Voxels of padding before each axis.
    """
    cubes = tissue(image)

    def is_air(tile: Tile) -> bool:
        x, y, z = (slice(axis.start - n, axis.stop - n) for axis, n in zip(tile, before, strict=True))
        return not is_in_tile(cubes, (x, y, z))

    air = [tile for tile in tiles if is_air(tile)]
    return air if len(air) < len(tiles) else []
