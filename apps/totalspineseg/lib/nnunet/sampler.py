"""Batches for fine-tuning: cases drawn by origin, patches around structures, channels and targets made on them."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch

from lib.errors import LabelError
from lib.geometry import LabelArray
from lib.nnunet.augmentation import build_augmentation
from lib.nnunet.cases import Origin, TrainingCase
from lib.nnunet.draws import draws_of, place
from lib.nnunet.finetune_settings import NONE, Strength
from lib.nnunet.model_folder import ModelFolder
from lib.nnunet.odd_channel import (
    EXACT_CHANNEL_SHARE,
    FOUND_CHANNEL_SHARE,
    disturbed_channel,
    marked_discs,
    taught_variant,
)
from lib.nnunet.targets import Step, exchanged, mark, present_codes, region_shares, step_target, thoracic_is_uneven

Shape = tuple[int, int, int]

FOREGROUND_SHARE: Final = 2 / 3
"""Share of patches that are centered on a structure, each structure equally often; the rest lie anywhere."""
CONTEXT: Final = 1.5
"""The crop handed to the spatial augmentation is larger than the patch by this factor, so that turning finds voxels."""
PLACES: Final = 2000
"""Voxels of each structure that may be a patch's center: enough to look random, few enough to keep."""


@dataclass(frozen=True)
class Batch:
    """What one step of training sees.

    Attributes:
        channels: (N, C, ...) float32.
        target: (N, R + 1, ...) float16, see ``targets.region_shares``.
        synthetic: Which patches nobody has corrected, bool (N,).
    """

    channels: torch.Tensor
    target: torch.Tensor
    synthetic: torch.Tensor


@dataclass(frozen=True)
class _Known:
    """A case and what is asked about it again and again."""

    case: TrainingCase
    places: Mapping[int, npt.NDArray[np.intp]]
    uneven_thoracic: bool
    marked: Mapping[bool, tuple[int, ...]]
    variants: Mapping[bool, bool]


class Sampler:
    """Draws patches from prepared cases, the same one for the same seed and number.

    Args:
        cases: From ``cases.prepare_cases``; corrections and replay together.
        folder: The model whose plans give patch and axes.
        replay_share: Share of patches from cases that are not fresh corrections.
        strength: How much is varied.
        seed: First part of each patch's seed, so that a resumed training goes on with the patches it would have had.
        exact_share: See ``EXACT_CHANNEL_SHARE``.

    Raises:
        LabelError: There is no case.
    """

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        folder: ModelFolder,
        *,
        replay_share: float,
        strength: Strength,
        seed: int = 0,
        exact_share: float = EXACT_CHANNEL_SHARE,
    ) -> None:
        if not cases:
            raise LabelError("at least one usable case is required for training, got none; submit a corrected label")
        known = [_know(case) for case in cases]
        self._pools = {origin: [entry for entry in known if entry.case.origin is origin] for origin in Origin}
        self._draws = draws_of(cases, replay_share)
        self._patch = folder.patch
        self._step = cast(Step, folder.step)
        self._exact_share = exact_share
        self._seed = seed
        x_axis = folder.transpose.index(2)
        self._vary = build_augmentation(self._patch, x_axis=x_axis, strength=strength)
        self._plain = build_augmentation(self._patch, x_axis=x_axis, strength=NONE)

    def batch(self, numbers: Iterable[int]) -> Batch:
        """Patches by their numbers, counted through the whole training.

        Args:
            numbers: From 0; the same number gives the same patch, whatever the others.
        """
        return _stack([self._draw(number) for number in numbers])

    def validation(self, number: int) -> Batch:
        """One unvaried patch with an exact channel, around a structure; ``number`` chooses it for good."""
        rng = np.random.default_rng((self._seed, 1 << 40, number))
        fresh = self._pools[Origin.CORRECTION]
        cases = fresh or [entry for pool in self._pools.values() for entry in pool]
        known = cases[number % len(cases)]
        with _seeded(rng):
            return self._patch_of(known, rng, self._plain, foreground=1, exact=1)

    def _draw(self, number: int) -> Batch:
        rng = np.random.default_rng((self._seed, number))
        origin, turn = self._draws.turn(number)
        pool = self._pools[origin]
        known = pool[place(turn, len(pool), (self._seed, *origin.value.encode()))]
        with _seeded(rng):
            return self._patch_of(known, rng, self._vary, foreground=FOREGROUND_SHARE, exact=self._exact_share)

    def _patch_of(
        self, known: _Known, rng: np.random.Generator, vary: Any, *, foreground: float, exact: float
    ) -> Batch:
        """A batch of one patch."""
        case = known.case
        maps = [case.codes] if case.found is None else [case.codes, case.found]
        center = _center(known, rng, foreground)
        parts = {"image": _crop([case.image], center, self._patch), "segmentation": _crop(maps, center, self._patch)}
        if case.shares is not None:
            parts["regression_target"] = _crop(list(case.shares), center, self._patch)
        swapped = self._step == 2 and known.variants[rng.random() < 0.5]
        varied = vary(**parts)
        codes, *found = varied["segmentation"].numpy().astype(np.uint8)
        channels = [varied["image"].float()]
        if self._step == 2:
            second = _second_channel(codes, found, known.marked[swapped], exact, rng)
            channels.append(torch.from_numpy(second)[None])
        if "regression_target" in varied:
            shares = (varied["regression_target"] / 255).half()
            target = shares[exchanged()] if swapped else shares
        else:
            # Parity of the lumbar spine depends on vertebrae outside the patch.
            classes = step_target(
                codes, self._step, swapped=swapped, uneven_thoracic=known.uneven_thoracic, unreviewed=case.unreviewed
            )
            target = region_shares(torch.from_numpy(classes), self._step)
        return Batch(torch.cat(channels)[None], target[None], torch.tensor([case.origin is Origin.SYNTHETIC]))


def _know(case: TrainingCase) -> _Known:
    rng = np.random.default_rng(0)
    places = {}
    # A patch around what carries no loss teaches little.
    for code in sorted(present_codes(case.codes) - case.unreviewed):
        found = np.flatnonzero(case.codes == code)
        places[code] = rng.choice(found, min(len(found), PLACES), replace=False)
    marked = {swapped: marked_discs(case.codes, swapped=swapped) for swapped in (False, True)}
    variants = {swapped: taught_variant(case.codes, swapped=swapped) for swapped in (False, True)}
    return _Known(case, places, thoracic_is_uneven(case.codes), marked, variants)


def _center(known: _Known, rng: np.random.Generator, foreground: float) -> Shape:
    """A voxel of a structure, each structure equally often, or any voxel."""
    shape = known.case.codes.shape
    if rng.random() < foreground and known.places:
        places = list(known.places.values())[int(rng.integers(len(known.places)))]
        a, b, c = (int(i) for i in np.unravel_index(int(places[int(rng.integers(len(places)))]), shape))
        return a, b, c
    a, b, c = (int(rng.integers(n)) for n in shape)
    return a, b, c


def _crop(arrays: Sequence[npt.NDArray[Any]], center: Shape, patch: Shape) -> torch.Tensor:
    """A region ``CONTEXT`` times the patch around a center, filled up with zeros; the patch stays inside the case."""
    size = [2 * int(np.ceil(n * CONTEXT / 2)) + n % 2 for n in patch]
    source, target = [], []
    for middle, length, edge, tile in zip(center, arrays[0].shape, size, patch, strict=True):
        # As at inference, a tile hangs over the edge only where the image is smaller than the tile.
        low, high = tile // 2, length - (tile - tile // 2)
        middle = length // 2 if high < low else min(max(middle, low), high)
        start = middle - edge // 2
        first, last = max(start, 0), min(start + edge, length)
        source.append(slice(first, last))
        target.append(slice(first - start, last - start))
    crop = torch.zeros((len(arrays), *size))
    for part, array in zip(crop, arrays, strict=True):
        part[tuple(target)] = torch.from_numpy(array[tuple(source)]).float()
    return crop


def _second_channel(
    codes: LabelArray, found: Sequence[LabelArray], marked: tuple[int, ...], exact: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """The marked discs as truth has them, as a step-1 network found them, or with errors as it makes them."""
    if rng.random() < exact:
        return mark(codes, marked)
    if found and rng.random() < FOUND_CHANNEL_SHARE:
        channel = mark(found[0], marked)
        if channel.any():  # without one nothing would tell odd from even
            return channel
    return disturbed_channel(codes, marked, rng)


def _stack(patches: Sequence[Batch]) -> Batch:
    parts = zip(*((p.channels, p.target, p.synthetic) for p in patches), strict=True)
    channels, target, synthetic = (torch.cat(part) for part in parts)
    return Batch(channels, target, synthetic)


def _seeded(rng: np.random.Generator) -> AbstractContextManager[None]:
    """The libraries' global generators set from ``rng`` for a while, then as they were."""

    @contextmanager
    def manager() -> Any:
        before = np.random.get_state()  # noqa: NPY002 - the augmentation library draws from it
        with torch.random.fork_rng(devices=[]):
            np.random.seed(int(rng.integers(1 << 31)))  # noqa: NPY002
            torch.manual_seed(int(rng.integers(1 << 31)))
            try:
                yield
            finally:
                np.random.set_state(before)  # noqa: NPY002

    return cast(AbstractContextManager[None], manager())
