"""Make training patches from synthetic spines and scans of people, as they are needed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from totalspineseg_server import anatomy
from totalspineseg_server.nnunet.odd_channel import EXACT_CHANNEL_SHARE, NEAR_MM, disturbed_channel
from totalspineseg_server.nnunet.real_spines import RealSpine, draw_pose, vary_scan
from totalspineseg_server.nnunet.starter_plans import GRIDS, Grid, regions_of
from totalspineseg_server.nnunet.targets import is_uneven, mark, present_codes, step_table
from totalspineseg_server.synthesis import Field, RenderOptions, SpineOptions, SyntheticSpine, random_spine, render
from totalspineseg_server.transforms.discs import CROP_MARGIN_MM

Spine: TypeAlias = SyntheticSpine | RealSpine

_SWAP_LEFT_RIGHT = 0.5
_SMALL_SCAN, _SMALLEST = 0.2, 0.25
"""Share of patches that are small scans (normalized by themselves), and their smallest side relative to the patch's."""
_REAL_POOL = 4
"""Number of scans of people in memory at a time, each posed differently."""
_FIELDS_BESIDE_PEOPLE = {
    Field.WHOLE: 0.22,
    Field.CERVICAL: 0.22,
    Field.CERVICOTHORACIC: 0.18,
    Field.THORACIC: 0.08,
    Field.THORACOLUMBAR: 0.1,
    Field.LUMBAR: 0.12,
    Field.LOWER_LUMBAR: 0.08,
}
"""Share of each field of view among the synthetic spines if lumbar scans of people are also used: otherwise necks and
whole spines become rare, and their names are forgotten.
"""


@dataclass(frozen=True)
class Sample:
    """One training example on the network's grid.

    Attributes:
        channels: Image (normalized), and in step 2 the marked discs, float32 (C, Z, Y, X).
        regions: Share of each region in each voxel, float32 (R, Z, Y, X). If scans of people are among the examples, (2
            R, Z, Y, X): the share of each voxel in which the region is unknown follows.
        near_marked: Where a disc that step 1 finds is one of the marked ones: nearer to a marked disc than to any
            other, and not far from it; bool (1, Z, Y, X), nowhere if not requested and in step 1.
    """

    channels: torch.Tensor
    regions: torch.Tensor
    near_marked: torch.Tensor


def odd_discs(rng: np.random.Generator, spine: Spine) -> tuple[tuple[int, ...], bool]:
    """Return every other disc in view, from the first or the second, and whether odd and even are exchanged for it.

    The rule for the network is local: the vertebra above a marked disc is even, the one below odd.
    """
    present = present_codes(spine.labels)
    in_view = [code for code in spine.discs if code in present]
    start = int(rng.random() < 0.5)
    marked = tuple(in_view[start::2])
    if not marked:
        return (), False
    above = dict(zip(spine.discs, spine.vertebrae[1:], strict=True))[marked[0]]
    return marked, spine.vertebrae.index(above) % 2 == 0


def class_table(step: int, spine: Spine, *, swapped: bool = False) -> NDArray[np.uint8]:
    """Return a table with 256 entries, output code -> class of a step, for this column."""
    table = np.zeros(256, np.uint8)
    uneven = is_uneven(spine.vertebrae)
    for code, value in step_table(step, swapped=swapped, uneven_thoracic=uneven).items():
        table[code] = value
    return table


def _window(rng: np.random.Generator, spine: Spine, size: tuple[int, ...], step: int) -> tuple[slice, ...]:
    """Return the position of a patch, (X, Y, Z); in step 2 it lies in the column's box. Half of the patches are at
    landmark discs."""
    low, high = np.zeros(3, int), np.array(spine.labels.shape)
    codes = spine.possible if isinstance(spine, RealSpine) else spine.labels
    spots = np.flatnonzero(codes)
    if step == 2 or rng.random() < 0.3:
        spacing = np.abs(np.diag(spine.affine)[:3])
        margin = np.round(CROP_MARGIN_MM * rng.uniform(0.6, 1.6) / spacing).astype(int)
        seen = [np.flatnonzero(codes.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
        low = np.maximum(low, [int(s[0]) for s in seen] - margin)
        high = np.minimum(high, [int(s[-1]) + 1 for s in seen] + margin)
    if rng.random() < 0.55:
        here = np.flatnonzero(spine.labels == rng.choice(anatomy.LANDMARK_DISCS))
        spots = here if here.size else spots
    pick = np.unravel_index(spots[int(rng.integers(spots.size))], codes.shape)
    window = []
    for axis, length in enumerate(size):
        center = int(pick[axis]) + int(rng.normal(0, 0.2) * length)
        first = int(np.clip(center - length // 2, low[axis], max(low[axis], high[axis] - length)))
        window.append(slice(first, int(min(first + length, high[axis]))))
    return tuple(window)


def draw_sample(
    rng: np.random.Generator,
    spine: Spine,
    step: int,
    patch: tuple[int, ...],
    *,
    near_marked: bool = False,
    with_hidden: bool = False,
) -> Sample:
    """Return one patch of a spine in a new contrast.

    Args:
        rng: Source of all randomness.
        spine: A spine on the step's fine grid. Not modified.
        step: 1 or 2.
        patch: Size on the network's grid, (Z, Y, X).
        near_marked: Whether to compute ``Sample.near_marked``, which takes two distance maps.
        with_hidden: Whether to return also where regions are unknown.

    Returns:
        Channels and region shares, zero-padded to the patch.
    """
    grid = GRIDS[step]
    fine = [p * f for p, f in zip(patch, grid.oversampling, strict=True)]
    if rng.random() < _SMALL_SCAN:
        fine = [int(n * rng.uniform(_SMALLEST, 1)) for n in fine]
    window = _window(rng, spine, tuple(fine[::-1]), step)
    part = _cut(spine, window)
    image = _image_of(rng, part, float(rng.uniform(0.3, 1.1)))
    image = (image - image.mean()) / (image.std() + 1e-6)
    marked, swapped = odd_discs(rng, spine) if step == 2 else ((), False)
    channels = [image]
    if step == 2:
        exact = rng.random() < EXACT_CHANNEL_SHARE
        channels.append(mark(part.labels, marked) if exact else disturbed_channel(part.labels, marked, rng))
    table = class_table(step, spine, swapped=swapped)
    regions = [_chosen(table, values)[part.labels] for values in regions_of(step).values()]
    count = len(regions) * (1 + with_hidden)
    if with_hidden:
        regions += _hidden(part, table, step, regions)
    if near_marked and marked:
        others = [code for code in spine.discs if code not in marked]
        regions += [_chosen(np.arange(256), codes)[part.labels] for codes in (marked, others)]
    mirror = rng.random() < _SWAP_LEFT_RIGHT
    inputs = _pool(np.stack(channels).astype(np.float32), patch, grid.oversampling, mirror=mirror)
    inputs[0] = inputs[0] * float(rng.uniform(0.75, 1.3)) + float(rng.normal(0, 0.2)) * (inputs[0] != 0)
    shares = torch.cat([_pool(mask[None], patch, grid.oversampling, mirror=mirror) for mask in regions])
    discs = (shares[count:] > 0).numpy()
    near = _near_marked(discs[0], discs[1], grid) if discs.size else np.zeros(patch, bool)
    return Sample(inputs, shares[:count], torch.from_numpy(near)[None])


def _chosen(table: NDArray[np.integer[Any]], values: Sequence[int]) -> NDArray[np.bool_]:
    """Return for each code whether its value in a table is among the values, which is much faster than testing each
    voxel.
    """
    return np.isin(table, values)


def _cut(spine: Spine, window: tuple[slice, ...]) -> Spine:
    if isinstance(spine, RealSpine):
        return spine.cut(window)
    parts = spine.labels[window], spine.tissues[window]
    return SyntheticSpine(*parts, spine.affine, spine.column, spine.vertebrae, spine.discs)


def _image_of(rng: np.random.Generator, spine: Spine, strength: float) -> NDArray[np.float32]:
    if isinstance(spine, RealSpine):
        return vary_scan(rng, spine.image, spine.spacing_mm, strength)
    return render(rng, spine, RenderOptions(strength=strength))


def _hidden(
    spine: Spine, table: NDArray[np.uint8], step: int, regions: list[NDArray[np.bool_]]
) -> list[NDArray[np.bool_]]:
    """Return where each region is unknown: its two readings differ, or there is none."""
    if not isinstance(spine, RealSpine):
        return [np.zeros_like(region) for region in regions]
    unknown = spine.labels == anatomy.UNREVIEWED
    return [
        (_chosen(table, values)[spine.second] != region) | unknown
        for values, region in zip(regions_of(step).values(), regions, strict=True)
    ]


def _near_marked(marked: NDArray[np.bool_], others: NDArray[np.bool_], grid: Grid) -> NDArray[np.bool_]:
    if not marked.any():
        return np.zeros_like(marked)
    reach = distance_transform_edt(~marked, sampling=grid.spacing_mm)
    rival = distance_transform_edt(~others, sampling=grid.spacing_mm) if others.any() else np.inf
    return np.asarray((reach <= NEAR_MM) & (reach < rival))


def _pool(
    arrays: NDArray[np.float32] | NDArray[np.bool_],
    patch: tuple[int, ...],
    oversampling: tuple[int, ...],
    *,
    mirror: bool,
) -> torch.Tensor:
    """Average (N, X, Y, Z) on the fine grid to float32 (N, Z, Y, X) on the network's grid, zero-padded to the patch."""
    if mirror:
        arrays = arrays[:, ::-1]
    total = arrays.view(np.uint8) if arrays.dtype == bool else arrays  # counts of eight fit into bytes
    for axis, factor in zip((1, 2, 3), reversed(oversampling), strict=True):
        length = total.shape[axis] // factor * factor
        lines = [slice(None)] * axis
        total = sum(
            (total[(*lines, slice(k, length, factor))] for k in range(1, factor)),
            total[(*lines, slice(0, length, factor))],
        )
    pooled = torch.from_numpy(np.ascontiguousarray(total.transpose(0, 3, 2, 1))) / float(np.prod(oversampling))
    out = torch.zeros((arrays.shape[0], *patch))
    starts = [(p - n) // 2 for p, n in zip(patch, pooled.shape[1:], strict=True)]
    box = tuple(slice(s, s + n) for s, n in zip(starts, pooled.shape[1:], strict=True))
    out[(slice(None), *box)] = pooled
    return out


def _field_beside_people(rng: np.random.Generator) -> Field:
    fields = tuple(_FIELDS_BESIDE_PEOPLE)
    return fields[int(rng.choice(len(fields), p=list(_FIELDS_BESIDE_PEOPLE.values())))]


def samples(
    step: int,
    seed: int,
    patch: tuple[int, ...],
    *,
    pool_size: int = 8,
    uses_per_spine: int = 20,
    near_every: int | None = None,
    real: Sequence[RealSpine] = (),
    real_share: float = 0.0,
) -> Iterator[Sample]:
    """Yield training examples without end; they are fixed by the seed.

    Args:
        step: 1 or 2.
        seed: Seed of the stream.
        patch: Size on the network's grid, (Z, Y, X).
        pool_size: Number of spines in memory at a time.
        uses_per_spine: Average number of patches from one synthetic spine.
        near_every: One in this many examples has ``near_marked``, beginning with the first; None for no example.
        real: Scans of people.
        real_share: Share of the examples from scans of people.

    Yields:
        The examples.
    """
    rng = np.random.default_rng(seed)
    spacing = GRIDS[step].fine_mm
    pool: list[SyntheticSpine] = []
    people: list[RealSpine] = []
    number = 0
    while True:
        near = near_every is not None and number % near_every == 0
        if real and rng.random() < real_share:
            if len(people) < _REAL_POOL or rng.random() < 1 / uses_per_spine:
                person = draw_pose(rng, real[int(rng.integers(len(real)))], spacing)
                people = [*people, person][-_REAL_POOL:]
            person = people[int(rng.integers(len(people)))]
            yield draw_sample(rng, person, step, patch, near_marked=near, with_hidden=True)
            number += 1
            continue
        if len(pool) < pool_size or rng.random() < 1 / uses_per_spine:
            zoom = float(rng.uniform(0.9, 1.12))
            field = _field_beside_people(rng) if real else None
            options = SpineOptions(field=field, spacing_mm=(spacing[0] * zoom, spacing[1] * zoom, spacing[2] * zoom))
            spine = random_spine(rng, options)
            if np.isin(spine.labels, anatomy.DISCS).any():
                pool = [*pool, spine][-pool_size:]
            continue
        spine = pool[int(rng.integers(len(pool)))]
        yield draw_sample(rng, spine, step, patch, near_marked=near, with_hidden=bool(real))
        number += 1
