"""Run a network over an image in overlapping tiles, whose logits are summed with Gaussian weights.

Source: nnU-Net 2's inference (tile positions, Gaussian). Different here: no mirroring, and sums in float32. In
    nnU-Net's half precision, small weights times a logit are rounded so much that logits in the corners of a volume
    become whole numbers; apart from that the results agree.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from scipy import ndimage

from totalspineseg_server.nnunet.air import is_in_tile, tissue

Shape = tuple[int, int, int]
Network = Callable[[torch.Tensor], torch.Tensor]
Tile = tuple[slice, ...]
Corner = tuple[int, int, int]
"""First voxel of a tile, below 0 in padding."""

SIGMA_SCALE: Final = 1 / 8
"""Standard deviation of the Gaussian as a share of the tile (nnU-Net's value)."""
PEAK: Final = 10.0
"""Weight at a tile's center, which suits the range of half precision (nnU-Net's value)."""
LEAST_SHARE: Final = 0.02
"""Largest share of a voxel's weights that may be missing because tiles beside a box are left out."""
WORTH_MOVING: Final = 4
"""Number of saved tiles for which the others move: a minute with the official networks on a CPU."""
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


@dataclass(frozen=True)
class Row:
    """The tiles along one axis of an image.

    Attributes:
        starts: First voxel of each tile. It lies outside the image if that is smaller than a tile.
        tile: Voxels of a tile.
        length: Voxels of the image.
    """

    starts: tuple[int, ...]
    tile: int
    length: int

    @property
    def part(self) -> slice:
        """The part of the image that the tiles cover."""
        return slice(max(0, self.starts[0]), min(self.length, self.starts[-1] + self.tile))

    @property
    def padding(self) -> tuple[int, int]:
        """Voxels before and after the image that the tiles cover, too."""
        return max(0, -self.starts[0]), max(0, self.starts[-1] + self.tile - self.length)

    def mirrored(self) -> "Row":
        """Return the tiles of the same part of the mirrored image; those of a whole image stay in their places."""
        if self.part == slice(0, self.length):
            return self
        starts = tuple(self.length - self.tile - start for start in reversed(self.starts))
        return Row(starts, self.tile, self.length)

    def covering(self, wanted: slice) -> "Row":
        """Return only the tiles that are needed to cover a part of the image, as far as all cover it."""
        before = [start for start in self.starts if start <= wanted.start] or [self.starts[0]]
        beyond = [start for start in self.starts if start + self.tile >= wanted.stop] or [self.starts[-1]]
        last = max(before[-1], beyond[0])
        return Row(tuple(start for start in self.starts if before[-1] <= start <= last), self.tile, self.length)

    def deciding(self, wanted: slice) -> "Row":
        """Return only the tiles that decide about the voxels of a part: those that cover it, and the neighbors that
        weigh more than ``LEAST_SHARE`` in any of its voxels."""
        voxels = np.arange(max(0, wanted.start), min(self.length, wanted.stop))
        inside = voxels[np.newaxis] - np.array(self.starts)[:, np.newaxis]
        weights = np.exp(-(((inside - self.tile // 2) / (self.tile * SIGMA_SCALE)) ** 2) / 2)
        weights[(inside < 0) | (inside >= self.tile)] = 0
        shares = weights / np.maximum(weights.sum(axis=0), np.finfo(float).tiny)
        covering = self.covering(wanted).starts
        first, last = self.starts.index(covering[0]), self.starts.index(covering[-1])
        while first > 0 and shares[:first].sum(axis=0).max() > LEAST_SHARE:
            first -= 1
        while last + 1 < len(self.starts) and shares[last + 1 :].sum(axis=0).max() > LEAST_SHARE:
            last += 1
        return Row(self.starts[first : last + 1], self.tile, self.length)


Rows = tuple[Row, Row, Row]
"""Tiles along each axis of an image."""


def whole_row(length: int, tile: int, step: float) -> Row:
    """Return the tiles of a whole axis; an image that is smaller than a tile lies in its middle.

    Args:
        length: Voxels of the image.
        tile: Voxels of a tile.
        step: See ``tile_starts``.
    """
    missing = max(0, tile - length)
    return Row(tuple(start - missing // 2 for start in tile_starts(length + missing, tile, step)), tile, length)


def fewest_tiles(wanted: slice, length: int, tile: int, step: float) -> Row:
    """Return the fewest tiles that cover a part of an axis.

    Tiles elsewhere than those of the whole axis change voxels. Therefore the tiles are some of those of the whole axis
    if as few of them cover the part, and all of them if no tile is saved.

    Args:
        wanted: The part, at least one voxel.
        length: Voxels of the axis.
        tile: Voxels of a tile.
        step: See ``tile_starts``.
    """
    whole = whole_row(length, tile, step)
    count = len(tile_starts(max(wanted.stop - wanted.start, tile), tile, step))
    if count == len(whole.starts):
        return whole
    if len((some := whole.covering(wanted)).starts) == count:
        return some
    width = tile + int((count - 1) * tile * step)
    start = wanted.start - (width - (wanted.stop - wanted.start)) // 2
    start = min(max(0, start), length - width)
    return Row(tuple(start + first for first in tile_starts(width, tile, step)), tile, length)


def chosen_rows(within: Sequence[slice], wanted: Sequence[slice], shape: Shape, patch: Shape, step: float) -> Rows:
    """Return the tiles that decide about a part of an image.

    They are tiles of the whole image, so that no voxel there changes, unless ``fewest_tiles`` saves at least
    ``WORTH_MOVING`` tiles.

    Args:
        within: The part of the image that holds more than air.
        wanted: The part of it whose voxels count.
        shape: Shape of the image.
        patch: Tile size.
        step: See ``tile_starts``.
    """
    stay, moved = [], []
    for covered, needed, length, tile in zip(within, wanted, shape, patch, strict=True):
        stay.append(whole_row(length, tile, step).deciding(needed))
        moved.append(fewest_tiles(covered, length, tile, step).deciding(needed))
    chosen = moved if tiles_of(stay) - tiles_of(moved) >= WORTH_MOVING else stay
    return chosen[0], chosen[1], chosen[2]


def tiles_of(rows: Sequence[Row]) -> int:
    """Return the number of tiles."""
    return int(np.prod([len(row.starts) for row in rows]))


@dataclass
class TileSums:
    """The sums of the tiles that were computed of an image, so that another look at it computes only other tiles.

    Attributes:
        rows: The tiles along each axis; None before the first look.
        done: Those that were computed.
        total: (R, ...) sums of logits times weights, over the part that the tiles cover, with padding.
        weight: (...) sums of weights.
    """

    rows: Rows | None = None
    done: set[Corner] = field(default_factory=set)
    total: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    weight: torch.Tensor = field(default_factory=lambda: torch.zeros(0))

    def clear(self) -> None:
        """Drop what was computed."""
        self.rows, self.done, self.total, self.weight = None, set(), torch.zeros(0), torch.zeros(0)

    def grow(self, rows: Rows, regions: int, device: torch.device) -> None:
        """Make room for more tiles. If those before are not all among them, they are dropped: they lie elsewhere.

        Args:
            rows: The tiles of the next look.
            regions: R.
            device: Device of the sums.
        """
        if self.rows == rows and self.total.device.type == device.type:
            return
        before, total, weight = self.rows, self.total, self.weight
        shape = [row.starts[-1] + row.tile - row.starts[0] for row in rows]
        self.rows = rows
        self.total, self.weight = torch.zeros(regions, *shape, device=device), torch.zeros(shape, device=device)
        if before is None or not all(_contains(row, other) for row, other in zip(rows, before, strict=True)):
            self.done = set()
            return
        first = [other.starts[0] - row.starts[0] for row, other in zip(rows, before, strict=True)]
        part = tuple(slice(start, start + n) for start, n in zip(first, weight.shape, strict=True))
        self.total[(slice(None), *part)] = total.to(device)
        self.weight[part] = weight.to(device)


def _contains(row: Row, other: Row) -> bool:
    """Return whether all tiles of another row of the same axis are among those of a row."""
    return (row.tile, row.length) == (other.tile, other.length) and set(other.starts) <= set(row.starts)


def sliding_logits(
    network: Network,
    image: torch.Tensor,
    rows: Rows,
    regions: int,
    *,
    compute: torch.device,
    sums: torch.device,
    autocast: bool,
    skip_air: bool = False,
    at_once: int = 1,
    earlier: TileSums | None = None,
) -> torch.Tensor:
    """Run the network over the part of an image that the tiles cover.

    If air is skipped, a tile that holds nothing else is computed only if a structure, as its neighbors see it, reaches
    into it. Where no tile was computed, there is no structure.

    Args:
        network: (N, C, *patch) -> (N, R, *patch) logits, on ``compute``.
        image: (C, ...) float32, network's axes, normalized. Not modified.
        rows: Tiles along each axis of the image.
        regions: R, number of output channels.
        compute: Device of the network.
        sums: Device of the sums: the CPU if they do not fit on the GPU.
        autocast: Whether to compute in half precision where that is safe (on a GPU).
        skip_air: Whether to leave out tiles that hold only air, in the first channel, or padding.
        at_once: N, largest number of tiles in a pass of the network.
        earlier: Tiles of earlier looks at the image, which are not computed again; those of this look are added. None
            to keep none.

    Returns:
        (R, ...) float32 logits on ``sums``, same spatial shape as the part.
    """
    added = TileSums() if earlier is None else earlier
    added.grow(rows, regions, sums)
    total, weight = added.total, added.weight
    patch = (rows[0].tile, rows[1].tile, rows[2].tile)
    flat = [n for row in reversed(rows) for n in row.padding]
    part = image[(slice(None), *(row.part for row in rows))].contiguous()
    data = torch.nn.functional.pad(part, flat).to(sums)
    weights = gaussian_weights(patch).to(sums)
    origin = (rows[0].starts[0], rows[1].starts[0], rows[2].starts[0])

    def place(corner: Corner) -> Tile:
        return tuple(slice(start - o, start - o + n) for start, o, n in zip(corner, origin, patch, strict=True))

    tiles = {corner: place(corner) for corner in itertools.product(rows[0].starts, rows[1].starts, rows[2].starts)}
    skipped = _air_tiles(image[0], tiles, patch) if skip_air else []
    due = [corner for corner in tiles if corner not in skipped]
    with torch.inference_mode(), torch.autocast(compute.type, enabled=autocast):
        while due:
            new = [corner for corner in due if corner not in added.done]
            for start in range(0, len(new), at_once):
                corners = new[start : start + at_once]
                stack = torch.stack([data[(slice(None), *tiles[corner])] for corner in corners])
                for corner, logits in zip(corners, network(stack.to(compute)), strict=True):
                    where = tiles[corner]
                    total[(slice(None), *where)].addcmul_(logits.to(device=sums, dtype=torch.float32), weights)
                    weight[where] += weights
                    added.done.add(corner)
            due = [corner for corner in skipped if bool((total[(slice(None), *tiles[corner])] > 0).any())]
            skipped = [corner for corner in skipped if corner not in due]
    inner = tuple(slice(row.padding[0], n - row.padding[1]) for row, n in zip(rows, data.shape[1:], strict=True))
    logits = total[(slice(None), *inner)]
    # Another look needs the sums.
    logits = logits.div_(weight[inner]) if earlier is None else logits / weight[inner]
    return logits.masked_fill_(weight[inner] == 0, AIR_LOGIT) if skipped else logits


def _air_tiles(image: torch.Tensor, tiles: Iterable[Corner], patch: Shape) -> list[Corner]:
    """Return the tiles that hold only air or padding; none if all do.

    Args:
        image: (A, B, C) the whole image without padding.
        tiles: Tiles of the image.
        patch: Size of a tile.
    """
    cubes, corners = tissue(image), list(tiles)

    def is_air(corner: Corner) -> bool:
        x, y, z = (slice(start, start + n) for start, n in zip(corner, patch, strict=True))
        return not is_in_tile(cubes, (x, y, z))

    air = [corner for corner in corners if is_air(corner)]
    return air if len(air) < len(corners) else []
