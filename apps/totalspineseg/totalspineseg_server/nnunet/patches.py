"""Make patches for fine-tuning: choose a case and a center, make channels, targets, and weights of the voxels."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from totalspineseg_server.anatomy import UNREVIEWED
from totalspineseg_server.errors import LabelError
from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.nnunet import nnunet_messages
from totalspineseg_server.nnunet.augmentation import build_augmentation
from totalspineseg_server.nnunet.cases import Origin
from totalspineseg_server.nnunet.draws import draws_of, place
from totalspineseg_server.nnunet.finetune_job import CODES, FOUND, SHARES, StoredCase, open_case
from totalspineseg_server.nnunet.finetune_settings import NONE, Strength
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.odd_channel import (
    EXACT_CHANNEL_SHARE,
    FOUND_CHANNEL_SHARE,
    disturbed_channel,
    marked_discs,
    training_variant,
)
from totalspineseg_server.nnunet.targets import (
    REGIONS,
    Step,
    exchanged,
    mark,
    present_codes,
    region_masks,
    region_shares,
    step_target,
    thoracic_is_uneven,
)

UNTOUCHED_WEIGHT: Final = 0.1
"""Weight of a structure that was left as the parent predicted it. With full weight the parent's errors would be learned
as truth; with a tenth the network keeps to the prediction where nothing else is known."""
RIM_MM: Final = 3.0
"""How far the true border may be from the labeled one. If the surroundings counted fully as background and the
structure only a tenth, every doubtful voxel would become background, and the structure would shrink."""

Rim = tuple[int, int, int]
Shape = tuple[int, int, int]

FOREGROUND_SHARE: Final = 2 / 3
"""Share of patches that are centered on a structure, each structure equally often; the others lie anywhere."""
CONTEXT: Final = 1.5
"""Size of the crop for the spatial augmentation, relative to the patch, so that rotation has voxels to bring in."""
WHOLE: Final = 255
"""Stored share for a region that fills a voxel."""
PLACES: Final = 2000
"""How many voxels of each structure may be a patch's center: enough to look random, few enough to keep in memory."""


Sample = dict[str, torch.Tensor]
"""A batch of one patch for nnU-Net's trainer: "data" (C, ...) float32, "target" (R + 1, ...) float16, see
``targets.region_shares``, "weight" (R, ...) float16, see ``region_weights``, and "uncorrected", whether nobody
corrected the case."""


def rim_of(spacing_mm: Sequence[float]) -> Rim:
    """Return ``RIM_MM`` in voxels along each axis, at least one.

    Args:
        spacing_mm: Voxel size of three axes.
    """
    a, b, c = (max(1, round(RIM_MM / mm)) for mm in spacing_mm)
    return a, b, c


def region_weights(classes: torch.Tensor, untouched: torch.Tensor, step: Step, rim: Rim) -> torch.Tensor:
    """Return the weight of each voxel for each region.

    An untouched structure has less weight in its own voxels, for every region (because its name, too, is only
    predicted), and for its own regions also around it. Around a structure of the same region that a reader drew, the
    weight is full: the border of a drawn canal is known, even if the cord inside is untouched.

    Args:
        classes: (A, B, C) uint8 of the step. Not modified.
        untouched: Voxels of untouched structures, bool, the same shape. Not modified.
        step: 1 or 2.
        rim: See ``rim_of``.

    Returns:
        (R, A, B, C) float16: ``UNTOUCHED_WEIGHT`` or 1; all 1 if nothing is untouched.
    """
    weights = torch.ones((len(REGIONS[step]), *classes.shape), dtype=torch.float16)
    if untouched.any():
        masks = region_masks(classes[None], step)[0]
        doubtful = untouched | _grown(masks & untouched, rim)
        weights[doubtful & ~_grown(masks & ~untouched, rim)] = UNTOUCHED_WEIGHT
    return weights


def _grown(masks: torch.Tensor, rim: Rim) -> torch.Tensor:
    """Return masks (R, A, B, C) extended by a box of a rim around each voxel.

    For 96 x 128 x 96 voxels this takes 1.5 ms for each mask, PyTorch's max pooling 190.
    """
    for axis, width in enumerate(rim, start=1):
        wider, length = masks.clone(), masks.shape[axis]
        for shift in range(1, min(width, length - 1) + 1):
            before, after = (0, length - shift), (shift, length - shift)
            wider.narrow(axis, *after).logical_or_(masks.narrow(axis, *before))
            wider.narrow(axis, *before).logical_or_(masks.narrow(axis, *after))
        masks = wider
    return masks


@dataclass(frozen=True)
class _Known:
    """A case with properties that are computed only once."""

    case: StoredCase
    shape: Shape
    places: Mapping[int, npt.NDArray[np.intp]]
    uneven_thoracic: bool
    marked: Mapping[bool, tuple[int, ...]]
    variants: Mapping[bool, bool]


class Patches(Dataset[Sample]):  # type: ignore[misc]  # untyped in torch
    """The patches of a training by their number; the same seed and number always give the same patch.

    Args:
        cases: Corrections and replay together.
        folder: Where their files are.
        model: The parent, whose plans give patch and axes.
        replay_share: See ``Draws``.
        accepted_share: See ``Draws``.
        strength: Strength of the augmentation.
        seed: First part of each patch's seed, so that a resumed training gets the same patches as an uninterrupted one.
        exact_share: See ``EXACT_CHANNEL_SHARE``.

    Raises:
        LabelError: There is no case.
    """

    def __init__(
        self,
        cases: Sequence[StoredCase],
        folder: Path,
        model: ModelFolder,
        *,
        replay_share: float,
        accepted_share: float = 0.0,
        strength: Strength,
        seed: int = 0,
        exact_share: float = EXACT_CHANNEL_SHARE,
    ) -> None:
        if not cases:
            raise LabelError(nnunet_messages.NO_USABLE_CASE)
        self._folder = folder
        known = [_know(case, folder) for case in cases]
        self._pools = {origin: [entry for entry in known if entry.case.origin is origin] for origin in Origin}
        self._draws = draws_of(cases, replay_share, accepted_share)
        self._patch = model.patch
        self._step = cast(Step, model.step)
        self._rim = rim_of(model.spacing_mm)
        self._exact_share = exact_share
        self._seed = seed
        x_axis = model.transpose.index(2)
        self._vary = build_augmentation(self._patch, x_axis=x_axis, strength=strength)
        self._plain = build_augmentation(self._patch, x_axis=x_axis, strength=NONE)

    def __getitem__(self, number: int) -> Sample:
        """Return the patch of a number, counted from 0 through the whole training."""
        rng = np.random.default_rng((self._seed, number))
        origin, turn = self._draws.turn(number)
        pool = self._pools[origin]
        known = pool[place(turn, len(pool), (self._seed, *origin.value.encode()))]
        with _seeded(rng):
            return self._patch_of(known, rng, self._vary, foreground=FOREGROUND_SHARE, exact=self._exact_share)

    def validation(self, number: int) -> Sample:
        """Return a patch around a structure, without variation and with an exact channel; a number always gives the
        same one."""
        rng = np.random.default_rng((self._seed, 1 << 40, number))
        fresh = self._pools[Origin.CORRECTION]
        cases = fresh or [entry for pool in self._pools.values() for entry in pool]
        known = cases[number % len(cases)]
        with _seeded(rng):
            return self._patch_of(known, rng, self._plain, foreground=1, exact=1)

    def _patch_of(
        self, known: _Known, rng: np.random.Generator, vary: Any, *, foreground: float, exact: float
    ) -> Sample:
        case, shares_at = known.case, SHARES[self._step]
        box = _Box(known.shape, _center(known, rng, foreground), self._patch)
        image, maps = open_case(self._folder, case.file)
        # Nothing is known outside the image.
        segmentation = box.crop(maps, CODES, shares_at, outside={0: UNREVIEWED})
        parts = {"image": box.crop(image, 0, 1), "segmentation": segmentation}
        if maps.shape[0] > shares_at:
            parts["regression_target"] = box.crop(maps, shares_at, maps.shape[0], outside={-1: WHOLE})
        swapped = self._step == 2 and known.variants[rng.random() < 0.5]
        varied = vary(**parts)
        codes, *found = varied["segmentation"].numpy().astype(np.uint8)
        channels = [varied["image"].float()]
        if self._step == 2:
            second = _second_channel(codes, found[FOUND - CODES - 1], known.marked[swapped], exact, rng)
            channels.append(torch.from_numpy(second)[None])
        # The parity of the lumbar spine depends on vertebrae outside the patch.
        classes = torch.from_numpy(
            step_target(
                codes, self._step, swapped=swapped, uneven_thoracic=known.uneven_thoracic, unreviewed=case.unreviewed
            )
        )
        if "regression_target" in varied:
            shares = (varied["regression_target"] / WHOLE).half()
            target = shares[exchanged()] if swapped else shares
        else:
            target = region_shares(classes, self._step)
        untouched = torch.from_numpy(np.isin(codes, list(case.untouched)))
        weight = region_weights(classes, untouched, self._step, self._rim)
        uncorrected = torch.tensor(case.origin is Origin.UNCORRECTED)
        return {"data": torch.cat(channels), "target": target, "weight": weight, "uncorrected": uncorrected}


def _know(case: StoredCase, folder: Path) -> _Known:
    rng = np.random.default_rng(0)
    codes = open_case(folder, case.file)[1][CODES].astype(np.uint8)
    places = {}
    # A patch around voxels without loss would teach little.
    for code in sorted(present_codes(codes) - case.unreviewed):
        found = np.flatnonzero(codes == code)
        places[code] = rng.choice(found, min(len(found), PLACES), replace=False)
    marked = {swapped: marked_discs(codes, swapped=swapped) for swapped in (False, True)}
    variants = {swapped: training_variant(codes, swapped=swapped) for swapped in (False, True)}
    return _Known(case, codes.shape, places, thoracic_is_uneven(codes), marked, variants)


def _center(known: _Known, rng: np.random.Generator, foreground: float) -> Shape:
    """Return a voxel of a structure, each structure equally often, or any voxel."""
    shape = known.shape
    if rng.random() < foreground and known.places:
        places = list(known.places.values())[int(rng.integers(len(known.places)))]
        a, b, c = (int(i) for i in np.unravel_index(int(places[int(rng.integers(len(places)))]), shape))
        return a, b, c
    a, b, c = (int(rng.integers(n)) for n in shape)
    return a, b, c


class _Box:
    """A region ``CONTEXT`` times as large as the patch around a center; the patch stays inside the case.

    Args:
        shape: Shape of the case.
        center: Wanted center of the patch.
        patch: Sides of the patch.
    """

    def __init__(self, shape: Shape, center: Shape, patch: Shape) -> None:
        self._size = [2 * int(np.ceil(n * CONTEXT / 2)) + n % 2 for n in patch]
        source, target = [], []
        for middle, length, edge, tile in zip(center, shape, self._size, patch, strict=True):
            # As at inference, a tile extends beyond the image only if the image is smaller than the tile.
            low, high = tile // 2, length - (tile - tile // 2)
            middle = length // 2 if high < low else min(max(middle, low), high)
            start = middle - edge // 2
            first, last = max(start, 0), min(start + edge, length)
            source.append(slice(first, last))
            target.append(slice(first - start, last - start))
        self._source, self._target = tuple(source), tuple(target)

    def crop(self, array: Any, first: int, last: int, outside: Mapping[int, int] | None = None) -> torch.Tensor:
        """Read some channels of an array as float32, padded with zeros or with the values ``outside`` of each
        channel."""
        crop = torch.zeros((last - first, *self._size))
        for channel, value in (outside or {}).items():
            crop[channel] = value
        crop[(slice(None), *self._target)] = torch.from_numpy(array[(slice(first, last), *self._source)]).float()
        return crop


def _second_channel(
    codes: LabelArray, found: LabelArray, marked: tuple[int, ...], exact: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Return the marked discs: exact, as a step-1 network found them, or with simulated errors."""
    if rng.random() < exact:
        return mark(codes, marked)
    if rng.random() < FOUND_CHANNEL_SHARE:
        channel = mark(found, marked)
        if channel.any():  # Without marks, odd and even cannot be told apart.
            return channel
    return disturbed_channel(codes, marked, rng)


@contextmanager
def _seeded(rng: np.random.Generator) -> Iterator[None]:
    """Seed the libraries' global generators from ``rng`` inside this block, and restore them afterwards."""
    before = np.random.get_state()  # noqa: NPY002 - the augmentation library draws from it
    with torch.random.fork_rng(devices=[]):
        np.random.seed(int(rng.integers(1 << 31)))  # noqa: NPY002
        torch.manual_seed(int(rng.integers(1 << 31)))
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002
