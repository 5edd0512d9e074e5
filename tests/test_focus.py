"""Step 1 in a box: the whole spine is in it, nothing outside decides, and tiles are few."""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from tiny_models import write_model_folder
from totalspineseg_server.nnunet import focus
from totalspineseg_server.nnunet.focus import EDGE_MM, MARGIN_MM, FocusedPredictor, is_worth_a_look, widened
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.predictor import WarmPredictor
from totalspineseg_server.nnunet.tiles import (
    Row,
    chosen_rows,
    fewest_tiles,
    sliding_logits,
    tile_starts,
    tiles_of,
    whole_row,
)
from totalspineseg_server.prediction import Prediction
from totalspineseg_server.trust import Trust

SHAPE = (120, 160, 300)
SPINE = (slice(50, 80), slice(60, 110), slice(30, 270))
WHOLE = tuple(slice(0, n) for n in SHAPE)


def painted(box: tuple[slice, ...]) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[box] = 1
    return labels


TILE = (32, 64, 64)
Box = tuple[slice, ...]


@dataclass
class Fine:
    """Draws a known map as far as its tiles reach."""

    truth: np.ndarray
    seen: list[Box | None] = field(default_factory=list)
    tiles: list[int] = field(default_factory=list)
    version: str = "fine-1"

    def predict(
        self,
        channels: np.ndarray,
        *,
        soft: Collection[str] = (),
        within: Box = WHOLE,
        wanted: Box | None = None,
        skip_air: bool = False,
        earlier: object = None,
    ) -> Prediction:
        rows = chosen_rows(within, wanted or within, SHAPE, TILE, 0.5)
        x, y, z = (row.part for row in rows)
        self.seen.append((x, y, z) if wanted is not None else None)
        self.tiles.append(tiles_of(rows))
        labels = np.zeros_like(self.truth)
        labels[x, y, z] = self.truth[x, y, z]
        return Prediction(labels, {name: labels.astype(np.float32) for name in soft}, seen=(x, y, z))


@dataclass
class Look:
    found: np.ndarray

    def predict(self, channels: np.ndarray, *, within: tuple[slice, ...]) -> Prediction:
        labels = np.zeros_like(self.found)
        labels[within] = self.found[within]
        return Prediction(labels)


def focused(fine: Fine, found: np.ndarray, image: np.ndarray | None = None) -> Prediction:
    predictor = FocusedPredictor(fine, Look(found))  # type: ignore[arg-type]
    assert predictor.version == "fine-1"
    channels = np.ones((1, *SHAPE), np.float32) if image is None else image[None]
    return predictor.predict(channels, soft=("cord",))


def test_a_spine_inside_the_box_is_drawn_as_from_the_whole_image() -> None:
    fine = Fine(painted(SPINE))
    answer = focused(fine, painted(SPINE))
    (box,) = fine.seen
    assert box is not None and np.prod([axis.stop - axis.start for axis in box]) < np.prod(SHAPE) * 0.7
    assert (answer.labels == fine.truth).all() and (answer.soft["cord"] == fine.truth).all()
    for axis, spine, margin, length in zip(box, SPINE, MARGIN_MM, SHAPE, strict=True):
        assert axis.start <= max(0, spine.start - margin) and axis.stop >= min(length, spine.stop + margin)


class Counted(torch.nn.Module):  # type: ignore[misc]
    """Finds bright voxels, and remembers the tiles that it got.

    Args:
        regions: Number of regions.
    """

    def __init__(self, regions: int) -> None:
        super().__init__()
        self.regions = regions
        self.tiles: list[bytes] = []

    def forward(self, tile: torch.Tensor) -> torch.Tensor:
        self.tiles.append(tile.numpy().tobytes())
        return torch.cat([tile - 0.5 - region / 10 for region in range(self.regions)], dim=1)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("found", [slice(40, 60), slice(10, 12)], ids=["a part", "beside it"])
def test_another_look_computes_no_tile_again(tmp_path, monkeypatch, mirror: bool, found: slice) -> None:
    """For a structure close to a side of the box, 28 tiles were computed instead of 20."""
    folder = ModelFolder.open(write_model_folder(tmp_path / "model", 1, patch=(16, 16, 16)))
    network = Counted(len(folder.regions))
    fine = WarmPredictor(folder, device="cpu", network=network, trust=Trust(mirror=mirror))
    image = np.random.default_rng(0).normal(100, 10, (16, 24, 200)).astype(np.float32)
    image[4:12, 6:18, 30:150] += 150
    truth = fine.predict(image[np.newaxis], soft=("cord",))
    every = len(network.tiles)
    network.tiles.clear()
    look = np.zeros(image.shape, np.uint8)
    look[6:10, 8:12, found] = 1
    monkeypatch.setattr(focus, "MARGIN_MM", (0, 0, 0))
    predictor = FocusedPredictor(fine, Look(look), skip_air=False)  # type: ignore[arg-type]
    looks = []
    monkeypatch.setattr(fine, "predict", lambda *a, _run=fine.predict, **k: looks.append(1) or _run(*a, **k))
    answer = predictor.predict(image[np.newaxis], soft=("cord",))
    assert len(looks) > 1
    assert len(set(network.tiles)) == len(network.tiles) <= every
    np.testing.assert_array_equal(answer.labels, truth.labels)
    assert answer.labels.any()


def test_specks_far_from_the_spine_do_not_widen_the_box() -> None:
    """In noisy air the coarse look found specks, and the network got the whole image."""
    fine, found = Fine(painted(SPINE)), painted(SPINE)
    found[0, 0, 0] = found[-1, -1, -1] = 1
    assert (focused(fine, found).labels == fine.truth).all()
    clean = Fine(painted(SPINE))
    focused(clean, painted(SPINE))
    assert fine.seen == clean.seen


@pytest.mark.parametrize(
    "found",
    [painted((SPINE[0], SPINE[1], slice(200, 270))), painted((slice(50, 54), slice(60, 64), slice(100, 104)))],
    ids=["half of it", "a corner of one vertebra"],
)
def test_a_spine_that_the_coarse_look_saw_in_part_is_not_cut_off(found: np.ndarray) -> None:
    fine = Fine(painted(SPINE))
    assert (focused(fine, found).labels == fine.truth).all()
    assert len(fine.seen) > 1


def test_the_whole_image_is_searched_where_a_look_finds_nothing() -> None:
    """A scan that the coarse network does not know must not come back empty."""
    blind, misled = Fine(painted(SPINE)), Fine(painted((slice(50, 80), slice(60, 110), slice(200, 290))))
    assert (focused(blind, np.zeros(SHAPE, np.uint8)).labels == blind.truth).all()
    assert blind.seen == [None]
    assert (focused(misled, painted((slice(0, 5), slice(0, 5), slice(0, 5)))).labels == misled.truth).all()
    assert misled.seen[-1] is None


@pytest.mark.parametrize(("start", "stop"), [(40, 90), (0, 30), (100, 120), (3, 118), (50, 82)])
@pytest.mark.parametrize("tile", [32, 48, 100, 256])
def test_a_part_gets_as_few_tiles_as_an_image_of_its_size(start: int, stop: int, tile: int) -> None:
    row, whole = fewest_tiles(slice(start, stop), 120, tile, 0.5), whole_row(120, tile, 0.5)
    assert row.part.start <= start and stop <= row.part.stop
    assert len(row.starts) == len(tile_starts(max(stop - start, tile), tile, 0.5))
    if any(len(whole.covering(slice(start, stop)).starts) == n for n in (len(row.starts), len(whole.starts))):
        assert set(row.starts) <= set(whole.starts), "tiles were moved that could have stayed"
    assert all(after - before <= tile / 2 for before, after in zip(row.starts, row.starts[1:], strict=False))


def test_the_box_moves_no_tile() -> None:
    """Two tiles of the box instead of three of the image lay elsewhere: all levels of a scan got other names."""
    whole = whole_row(241, 126, 0.5)
    assert whole.covering(slice(20, 140)) == Row(whole.starts[:2], 126, 241)
    assert whole.covering(slice(70, 230)) == Row(whole.starts[1:], 126, 241)
    assert whole.covering(slice(0, 241)) == whole.covering(slice(50, 200)) == whole
    # Toward the end of the second tile the third one weighs more, even where it is not needed to cover the part.
    assert whole.deciding(slice(20, 130)) == Row(whole.starts[:2], 126, 241)
    assert whole.deciding(slice(20, 150)) == whole
    assert whole.deciding(slice(110, 230)) == Row(whole.starts[1:], 126, 241)
    small = whole_row(30, 48, 0.5)
    assert (small.part, small.padding, small.covering(slice(10, 20))) == (slice(0, 30), (9, 9), small)
    assert whole.mirrored() == whole and small.mirrored() == small
    assert Row((0, 58), 126, 241).mirrored() == Row((57, 115), 126, 241)


@pytest.mark.parametrize(
    ("spacing", "seen"), [((1, 1, 1), (32, 80)), ((2, 1.5, 2.5), (16, 80))], ids=["1 mm", "coarse, uneven"]
)
def test_a_voxel_whose_tiles_are_all_computed_is_that_of_the_whole_image(tmp_path, spacing, seen) -> None:
    folder = ModelFolder.open(write_model_folder(tmp_path / "model", 1, patch=(16, 16, 16), spacing=spacing))
    predictor = WarmPredictor(folder, device="cpu")
    image = np.random.default_rng(0).normal(100, 30, (1, 24, 20, 112)).astype(np.float32)
    whole = predictor.predict(image, soft=("cord",))
    part = predictor.predict(image, soft=("cord",), wanted=(slice(0, 24), slice(0, 20), slice(42, 70)))
    assert whole.seen == (slice(0, 24), slice(0, 20), slice(0, 112))
    assert part.seen is not None and part.seen[2] == slice(*seen)
    inside, outside = slice(50, 62), np.ones(112, bool)
    outside[slice(*seen)] = False
    assert len(np.unique(whole.labels[..., inside])) > 2
    np.testing.assert_array_equal(part.labels[..., inside], whole.labels[..., inside])
    np.testing.assert_allclose(part.soft["cord"][..., inside], whole.soft["cord"][..., inside], atol=1e-6)
    assert not part.labels[..., outside].any() and not part.soft["cord"][..., outside].any()


def test_only_a_side_inside_the_image_is_moved() -> None:
    box = (slice(20, 100), slice(0, 160), slice(50, 250))
    assert widened(painted((slice(40, 60), slice(0, 160), slice(60, 240))), box, WHOLE) == box
    close = widened(painted((slice(20 + EDGE_MM - 1, 60), slice(0, 160), slice(60, 250))), box, WHOLE)
    assert close == (slice(0, 100), slice(0, 160), slice(50, 300))
    assert widened(painted((slice(0, 0),) * 3), box, WHOLE) is None
    # Beyond the limits there is only air.
    reached = painted((slice(20, 60), slice(0, 160), slice(60, 250)))
    assert widened(reached, box, (slice(10, 110), slice(0, 160), slice(50, 250))) == (slice(10, 100), *box[1:])


SMALL = (64, 80, 144)


def noisy_slab(tissue: tuple[slice, ...], shape: tuple[int, ...] = SMALL) -> np.ndarray:
    """Return a body of bright and dark tissue in noise."""
    rng = np.random.default_rng(0)
    body = rng.choice(np.float32([150, 400, 900]), [-(-n // 8) for n in shape])
    image = np.zeros(shape, np.float32)
    image[tissue] = np.kron(body, np.ones((8, 8, 8), np.float32))[tuple(slice(0, n) for n in shape)][tissue]
    noise = rng.standard_normal((2, *shape), np.float32) * 20
    return np.hypot(image + noise[0], noise[1])


def least_tiles(part: Box) -> int:
    """Return the number of tiles of an image that is only a part."""
    return tiles_of([whole_row(axis.stop - axis.start, tile, 0.5) for axis, tile in zip(part, TILE, strict=True)])


def test_air_around_the_spine_costs_no_tile() -> None:
    """A scan with 60 mm of air on each side took more than five times as long."""
    slab = (slice(40, 88), slice(50, 120), slice(20, 280))
    fine = Fine(painted((slice(44, 84), slice(60, 110), slice(20, 280))))
    assert (focused(fine, fine.truth, noisy_slab(slab, SHAPE)).labels == fine.truth).all()
    # The structure that reaches the last slice of the slab is no reason to look into the air.
    assert fine.tiles == [least_tiles(slab)]
    blank = Fine(painted(SPINE))
    assert (focused(blank, painted(SPINE), np.full(SHAPE, 3, np.float32)).labels == blank.truth).all()


def test_step_two_gets_no_air_in_its_crop() -> None:
    """The margin of the crop reached into the air beside a slab, which took a fifth row of tiles."""
    fine, slab = Fine(painted(SPINE)), (slice(40, 88), slice(50, 120), slice(20, 280))
    image = np.stack([noisy_slab(slab, SHAPE), fine.truth.astype(np.float32)])
    predictor = FocusedPredictor(fine, None)  # type: ignore[arg-type]
    assert (predictor.predict(image).labels == fine.truth).all() and fine.tiles == [least_tiles(slab)]


def test_air_that_costs_no_tile_moves_none() -> None:
    """A few millimeters of air at a side moved all tiles: a tenth of the voxels got another label, in the same time."""
    fine = Fine(painted(SPINE))
    FocusedPredictor(fine, None).predict(noisy_slab((slice(4, 120), slice(0, 160), slice(2, 300)), SHAPE)[None])  # type: ignore[arg-type]
    FocusedPredictor(fine, None).predict(noisy_slab((slice(4, 120), slice(50, 120), slice(2, 300)), SHAPE)[None])  # type: ignore[arg-type]
    whole, some = fine.seen
    assert whole == WHOLE and some is not None and (some[0], some[2]) == (WHOLE[0], WHOLE[2])
    assert some[1] == slice(32, 128), "two of the image's four tiles"


def test_tiles_stay_where_moving_them_saves_few() -> None:
    """One of two tiles was saved along an axis with some air, and one voxel in seven got another label."""
    shape, patch = (52, 384, 225), (48, 256, 256)
    body = (slice(0, 52), slice(84, 298), slice(0, 225))
    whole = tuple(whole_row(length, tile, 0.5) for length, tile in zip(shape, patch, strict=True))
    assert chosen_rows(body, body, shape, patch, 0.5) == whole
    # Six centimeters of air on all sides are worth it.
    shape, body = (240, 300, 680), (slice(60, 180), slice(60, 240), slice(60, 620))
    assert tiles_of(chosen_rows(body, body, shape, patch, 0.5)) == 16


@dataclass
class Seen:
    """A network that finds bright voxels, and remembers which tiles it got."""

    tiles: list[torch.Tensor] = field(default_factory=list)
    bright: float = 300.0

    def __call__(self, tile: torch.Tensor) -> torch.Tensor:
        self.tiles.append(tile)
        return tile - self.bright


def sums(image: np.ndarray, *, skip_air: bool, bright: float = 300.0) -> tuple[torch.Tensor, int]:
    network, cpu = Seen(bright=bright), torch.device("cpu")
    logits = sliding_logits(
        network,
        torch.from_numpy(image)[None],
        tuple(whole_row(n, 32, 0.5) for n in image.shape),  # type: ignore[arg-type]
        1,
        compute=cpu,
        sums=cpu,
        autocast=False,
        skip_air=skip_air,
    )
    return logits, len(network.tiles)


def test_tiles_of_air_are_left_out_and_no_voxel_changes() -> None:
    # Above the neck, the image beside it is air: no box leaves that out.
    image = np.maximum(
        noisy_slab((slice(0, 64), slice(10, 70), slice(0, 40))),
        noisy_slab((slice(0, 12), slice(10, 70), slice(0, 144))),
    )
    (exact, every), (fast, few) = sums(image, skip_air=False), sums(image, skip_air=True)
    assert few < 0.7 * every
    assert ((exact > 0) == (fast > 0)).all() and bool((exact > 0).any())
    assert bool(torch.isfinite(fast).all())
    same, all_alike = sums(np.full(SMALL, 400, np.float32), skip_air=True)
    assert all_alike == every and bool((same > 0).all())


def test_a_structure_that_reaches_into_air_is_not_cut_off() -> None:
    """An implant or a saturation band takes the signal from a part of the spine."""
    image = noisy_slab((slice(0, 64), slice(0, 80), slice(0, 60)))
    (exact, every), (fast, few) = sums(image, skip_air=False, bright=1.0), sums(image, skip_air=True, bright=1.0)
    assert few == every
    torch.testing.assert_close(fast, exact, atol=1e-3, rtol=1e-4)


def test_a_network_sees_the_box_normalized_like_the_whole_image(tmp_path) -> None:
    """A bright bladder outside the box made the vertebrae in it as dark as air."""
    folder = ModelFolder.open(write_model_folder(tmp_path / "model", 1, patch=(16, 16, 16)))
    predictor = WarmPredictor(folder, device="cpu")
    image = np.random.default_rng(0).normal(100, 30, (1, 20, 30, 40)).astype(np.float32)
    image[..., 36:] += 2000
    box = (slice(2, 18), slice(4, 20), slice(8, 24))
    inside = predictor.predict(image, soft=("cord",), within=box)
    outside = np.ones(image.shape[1:], bool)
    outside[box] = False
    assert not inside.labels[outside].any() and not inside.soft["cord"][outside].any()
    # One tile fits the box exactly: the same tile of an image that was normalized before gives the same answer.
    normalized = (image - image.mean()) / image.std()
    folder.configuration["normalization_schemes"][0] = "NoNormalization"  # type: ignore[index]
    alone = predictor.predict(np.ascontiguousarray(normalized[(slice(None), *box)]), soft=("cord",))
    assert (alone.labels == inside.labels[box]).all() and len(np.unique(alone.labels)) > 1
    np.testing.assert_allclose(alone.soft["cord"], inside.soft["cord"][box], atol=1e-4)
    elsewhere = predictor.predict(image, within=(slice(0, 0), slice(0, 5), slice(0, 5)))
    assert not elsewhere.labels.any()


def test_the_starter_network_needs_no_look(tmp_path) -> None:
    fine = ModelFolder.open(write_model_folder(tmp_path / "fine", 1))
    assert is_worth_a_look(fine)
    coarse = ModelFolder.open(write_model_folder(tmp_path / "coarse", 1, spacing=(2.0, 2.25, 3.5)))
    assert not is_worth_a_look(coarse)
