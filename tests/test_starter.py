"""Tests of starter training: patches, loss, resumption, and a folder that nnU-Net itself loads."""

import hashlib
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from known_figures import require_known
from totalspineseg_server import anatomy
from totalspineseg_server.cli import main
from totalspineseg_server.errors import WeightsError
from totalspineseg_server.nnunet import starter_batches
from totalspineseg_server.nnunet.discovery import read_trust, write_trust
from totalspineseg_server.nnunet.odd_channel import EXACT_CHANNEL_SHARE, NEAR_MM
from totalspineseg_server.nnunet.starter import StarterFinder, _batches, _Run, train_starter
from totalspineseg_server.nnunet.starter_batches import class_table, draw_sample, odd_discs, samples
from totalspineseg_server.nnunet.starter_model import build_network, draws_outlines, export_model, warm_start
from totalspineseg_server.nnunet.starter_plans import (
    CHECKPOINT,
    GRIDS,
    STARTER_FOLDERS,
    StarterSettings,
    dataset_json,
    plans_json,
    regions_of,
)
from totalspineseg_server.nnunet.training import deep_loss
from totalspineseg_server.synthesis import Field, SpineOptions, SyntheticSpine, random_spine
from totalspineseg_server.trust import UNMEASURED, Trust

pytestmark = pytest.mark.slow

APP = Path(__file__).parents[1] / "apps" / "totalspineseg"
TINY = (4, 6, 8)
PATCH = (32, 16, 16)


def tiny(**settings: object) -> StarterSettings:
    return StarterSettings(**({"features": TINY, "patch": PATCH, "pool_size": 1} | settings))  # type: ignore[arg-type]


def lumbar(seed: int = 0, step: int = 2, **options: int) -> SyntheticSpine:
    settings = SpineOptions(
        field=Field.LUMBAR, spacing_mm=GRIDS[step].fine_mm, width_mm=80.0, depth_mm=150.0, **options
    )
    return random_spine(np.random.default_rng(seed), settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("starter")
    for step in (1, 2):
        train_starter(step, out, tiny(iterations=2, seed=1))
    return out


@pytest.mark.parametrize("step", [1, 2])
def test_nnunets_own_predictor_loads_the_folder_and_predicts(trained: Path, step: int) -> None:
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(trained / STARTER_FOLDERS[step]), use_folds=(0,))
    assert predictor.label_manager.has_regions
    assert predictor.label_manager.num_segmentation_heads == len(regions_of(step))
    assert predictor.allowed_mirroring_axes is None
    image = np.random.default_rng(0).standard_normal((step, 40, 24, 20)).astype(np.float32)
    found = predictor.predict_single_npy_array(image, {"spacing": [2.0, 2.0, 3.0]})
    assert found.shape == (40, 24, 20)


@pytest.mark.parametrize("step", [1, 2])
def test_checkpoint_loads_without_pickled_code_in_half_precision_and_matches_its_hash(trained: Path, step: int) -> None:
    folder = trained / STARTER_FOLDERS[step]
    checkpoint = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert {v.dtype for v in checkpoint["network_weights"].values()} == {torch.float16}
    distinct = sum(p.numel() for p in build_network(step, TINY, deep_supervision=True).parameters())
    stored = {v.data_ptr(): v.numel() for v in checkpoint["network_weights"].values()}
    assert sum(stored.values()) == distinct, "a weight known by several names is stored several times"
    for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert json.loads((folder / "training.json").read_text(encoding="utf-8"))["iterations_done"] == 2


def test_training_continues_from_its_state_and_starts_over_on_request(tmp_path: Path) -> None:
    def state() -> dict[str, object]:
        path = tmp_path / STARTER_FOLDERS[1] / "fold_0" / "checkpoint_latest.pth"
        loaded: dict[str, object] = torch.load(path, weights_only=True)
        return loaded

    train_starter(1, tmp_path, tiny(iterations=1))
    first = state()
    train_starter(1, tmp_path, tiny(iterations=3))
    second = state()
    assert second["iteration"] == 3
    assert second["losses"][:1] == first["losses"]  # type: ignore[index]
    train_starter(1, tmp_path, tiny(iterations=1), resume=False)
    assert state()["iteration"] == 1


def test_a_piece_ends_early_with_a_state_and_a_model_and_the_next_goes_on(tmp_path: Path) -> None:
    folder = train_starter(1, tmp_path, tiny(iterations=1000, piece_minutes=1e-6))
    first = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert first["iterations_done"] < 1000
    assert (folder / "fold_0" / "checkpoint_final.pth").is_file()
    train_starter(1, tmp_path, tiny(iterations=first["iterations_done"] + 1))
    assert (
        json.loads((folder / "training.json").read_text(encoding="utf-8"))["iterations_done"]
        == first["iterations_done"] + 1
    )


def test_new_weights_are_not_believed_as_those_before_them_were_measured(tmp_path: Path) -> None:
    """A training into a folder left the old trust.json beside the new weights."""
    write_trust(tmp_path, Trust(mirror=True, scans=30))
    export_model(tmp_path, 1, build_network(1, TINY, deep_supervision=True).state_dict(), TINY)
    assert read_trust(tmp_path) == UNMEASURED


def test_training_begins_with_chosen_weights_and_says_which(trained: Path, tmp_path: Path) -> None:
    source = trained / STARTER_FOLDERS[1]
    folder = train_starter(1, tmp_path, tiny(iterations=1, learning_rate=1e-9), start_from=source)
    had, has = (
        torch.load(f / "fold_0/checkpoint_final.pth", weights_only=True)["network_weights"] for f in (source, folder)
    )
    assert all(torch.allclose(had[name], has[name], atol=1e-3) for name in had)
    digest = hashlib.sha256((source / "fold_0/checkpoint_final.pth").read_bytes()).hexdigest()
    assert json.loads((folder / "training.json").read_text(encoding="utf-8"))["begun_from_sha256"] == digest


def test_a_training_of_outlines_leaves_what_tells_levels_apart(tmp_path: Path) -> None:
    """More patients in the training drew better and named whole spines one level off."""
    had = _weights(train_starter(2, tmp_path / "before", tiny(features=(4, 6, 8, 8, 8), iterations=1)))
    rest = tiny(features=(4, 6, 8, 8, 8), iterations=3, learning_rate=0.1, warm_up=1, ema_decay=0.0, outlines_only=True)
    source = tmp_path / "before" / STARTER_FOLDERS[2]
    has = _weights(train_starter(2, tmp_path / "after", rest, start_from=source))
    changed = {name for name in had if not torch.equal(had[name], has[name])}
    assert changed
    assert all(draws_outlines(name) for name in changed)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(folder / CHECKPOINT, weights_only=True)["network_weights"]
    return weights


def test_workers_draw_streams_of_their_own(tmp_path: Path) -> None:
    stream = _batches(1, 0, PATCH, tiny(workers=2, batch_size=1))
    first, second = next(stream), next(stream)
    assert first[0].shape == (1, 1, *PATCH)
    assert not torch.equal(first[0], second[0]), "both workers drew the same spines"
    alone = next(_batches(1, 0, PATCH, tiny()))
    assert torch.equal(first[0], alone[0])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"iterations": 0}, "iterations of 1"),
        ({"minutes": -1.0}, "positive time"),
        ({"workers": -1}, "workers"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tiny(**wrong)


def test_a_few_iterations_on_one_patch_lower_the_loss() -> None:
    torch.manual_seed(0)
    network = build_network(1, TINY, deep_supervision=True)
    sample = draw_sample(np.random.default_rng(0), lumbar(), 1, PATCH)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = deep_loss(network(sample.channels[None]), sample.regions[None])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1


def test_loss_is_lowest_for_the_truth() -> None:
    truth = (torch.rand(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    right, wrong = (20 * truth - 10), (10 - 20 * truth)
    assert deep_loss([right], truth) < -0.99
    assert deep_loss([wrong], truth) > 5


def test_loss_is_lowest_at_the_share_of_a_voxel_on_the_border() -> None:
    """Cords came out a voxel too thin, because the usual Dice learned a voxel with 40 % cord as none."""
    truth = torch.zeros(1, 1, 24, 24, 24)
    truth[..., 12, 12, 4:12] = 1.0
    border = (..., 12, 12, 12)
    truth[border] = 0.4

    def loss(share: float) -> float:
        guess = truth.clone().clamp(1e-6, 1 - 1e-6)
        guess[border] = share
        return float(deep_loss([torch.logit(guess)], truth))

    shares = [0.01, 0.2, 0.3, 0.4, 0.5, 0.6, 0.99]
    assert min(shares, key=loss) == 0.4


def test_a_landmark_out_of_view_hardly_weighs() -> None:
    """Landmark discs were never found, because patches without them taught their channels to stay silent."""
    truth = torch.zeros(1, 2, 8, 8, 8)
    truth[:, 0, :4] = 1
    logits = 20 * truth - 10
    timid = logits.clone()
    timid[:, 1] = -4.0
    assert deep_loss([timid], truth) - deep_loss([logits], truth) < 0.02


def test_step2_takes_over_what_fits_and_uses_the_marked_discs() -> None:
    one, two = (build_network(s, TINY, deep_supervision=True).state_dict() for s in (1, 2))
    mixed = warm_start(two, one)
    assert mixed.keys() == two.keys()
    assert all(mixed[k].shape == two[k].shape for k in two)
    first = next(k for k, v in two.items() if v.ndim == 5 and v.shape[1] == 2)
    assert torch.equal(mixed[first][:, :1], one[first])
    assert mixed[first][:, 1:].abs().max() > 0


@pytest.mark.parametrize("seed", range(6))
def test_vertebra_above_a_marked_disc_is_always_even(seed: int) -> None:
    """Odd and even came out exchanged when the second set of discs was marked."""
    spine = lumbar(seed, thoracic=11 + seed % 3, lumbar=4 + seed % 3)
    marked, swapped = odd_discs(np.random.default_rng(seed), spine)
    table = class_table(2, spine, swapped=swapped)
    above = dict(zip(spine.discs, spine.vertebrae[1:], strict=True))
    assert marked
    for disc in marked:
        assert table[above[disc]] == anatomy.Step2.VERTEBRA_EVEN.value
    unmarked = [d for d in spine.discs if d in spine.labels and d not in marked]
    for disc in unmarked:
        assert table[above[disc]] == anatomy.Step2.VERTEBRA_ODD.value


def test_both_sets_of_discs_are_drawn_and_go_with_both_parities() -> None:
    spine = lumbar()
    painted = {odd_discs(np.random.default_rng(s), spine) for s in range(12)}
    assert len({marked for marked, _ in painted}) == 2
    assert {swapped for _, swapped in painted} == {False, True}


def test_parity_of_a_normal_column_is_the_label_tables() -> None:
    spine = lumbar(thoracic=12, lumbar=5)
    table, odd = class_table(2, spine), anatomy.Step2.VERTEBRA_ODD.value
    assert all((anatomy.PARITY[code] is anatomy.Parity.ODD) == (table[code] == odd) for code in spine.vertebrae)


def test_patch_holds_image_marked_discs_and_shares() -> None:
    stream = samples(2, 0, PATCH, pool_size=1)
    painted = [next(stream) for _ in range(2)]
    for sample in painted:
        assert sample.channels.shape == (2, *PATCH)
        assert sample.regions.shape == (len(anatomy.STEP2_REGIONS), *PATCH)
        assert torch.isfinite(sample.channels).all()
        assert 0 <= sample.regions.min() <= sample.regions.max() <= 1
    again = samples(2, 0, PATCH, pool_size=1)
    assert torch.equal(next(again).channels, painted[0].channels)


def test_a_stated_share_of_patches_shows_the_marked_discs_without_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The starter weights saw other errors of step 1, in other shares, than every later training."""
    monkeypatch.setattr(starter_batches, "disturbed_channel", lambda codes, marked, rng: np.full(codes.shape, 0.5, "f"))
    rng, spine = np.random.default_rng(0), lumbar()
    painted = [draw_sample(rng, spine, 2, (8, 16, 8)) for _ in range(40)]
    disturbed = sum(float(sample.channels[1].max()) == 0.5 for sample in painted)
    assert disturbed / 40 == pytest.approx(1 - EXACT_CHANNEL_SHARE, abs=0.15)


def test_patches_are_drawn_as_they_were() -> None:
    """A changed number moved the patches away from the landmarks, and the training learned their names late."""
    found, spine = {}, lumbar()
    for step, seed in itertools.product((1, 2), range(10)):
        rng = np.random.default_rng(seed)
        sample = draw_sample(rng, spine, step, (48, 32, 12), near_marked=True, with_hidden=seed % 2 == 0)
        nonzero = sample.channels[sample.channels != 0]
        regions = sample.regions.mean(dim=(1, 2, 3)).tolist()
        found[f"step {step}, {seed}"] = [
            *(float(sample.channels.mean()), float(sample.channels.std()), float(nonzero.numel())),
            *(*regions, float(sample.near_marked.sum())),
        ]
    require_known("patches", found, rel=0.003, abs=0.002)


def test_starter_training_hardly_pulls_weights_to_zero() -> None:
    settings = StarterSettings(features=TINY)
    (group,) = _Run(1, settings).optimizer.param_groups
    assert 0 < group["lr"] * group["weight_decay"] * settings.iterations < 0.01


def test_marked_discs_lie_on_discs() -> None:
    rng, spine = np.random.default_rng(3), lumbar()
    discs = list(anatomy.STEP2_REGIONS).index("disc")
    painted = [draw_sample(rng, spine, 2, (64, 48, 16)) for _ in range(6)]
    marked = torch.stack([s.channels[1] > 0.9 for s in painted])
    assert marked.any()
    assert torch.stack([s.regions[discs] for s in painted])[marked].mean() > 0.6


def test_found_discs_near_marked_ones_are_those_of_the_marked_set() -> None:
    rng, spine = np.random.default_rng(3), lumbar()
    discs = list(anatomy.STEP2_REGIONS).index("disc")
    painted = [draw_sample(rng, spine, 2, (64, 48, 16), near_marked=True) for _ in range(6)]
    near, region, marks = (
        torch.stack([s.near_marked[0] for s in painted]),
        torch.stack([s.regions[discs] > 0.5 for s in painted]),
        torch.stack([s.channels[1] > 0.9 for s in painted]),
    )
    assert (near & marks).sum() > 0.8 * marks.sum()  # some marks are drawn shifted or thicker
    assert 0.2 < (near & region).sum() / region.sum() < 0.8  # every other disc
    assert near.sum() > 1.2 * (near & region).sum()  # and wrong ones around it, like a network
    assert not draw_sample(rng, spine, 1, PATCH, near_marked=True).near_marked.any()


def test_near_a_marked_disc_is_up_to_a_distance_and_not_nearer_to_another() -> None:
    marked, other = np.zeros((20, 1, 1), bool), np.zeros((20, 1, 1), bool)
    marked[0] = True
    grid = SimpleNamespace(spacing_mm=(1.0, 1.0, 1.0))
    assert starter_batches._near_marked(marked, other, grid).sum() == NEAR_MM + 1
    other[4] = True
    assert np.argwhere(starter_batches._near_marked(marked, other, grid))[:, 0].tolist() == [0, 1]


def test_near_marked_is_computed_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every patch of step 2 computed two distance maps; one in four used them, and none without a finder."""
    computed = []
    real = starter_batches._near_marked
    monkeypatch.setattr(starter_batches, "_near_marked", lambda *discs: computed.append(1) or real(*discs))
    spine = lumbar()
    monkeypatch.setattr(starter_batches, "random_spine", lambda rng, options: spine)
    for every, expected in ((None, []), (4, [0, 4])):
        stream = samples(2, 0, (64, 48, 16), pool_size=1, near_every=every)
        counts = [(next(stream).near_marked.any(), len(computed)) for _ in range(6)]
        assert [k for k in range(6) if counts[k][1] > (counts[k - 1][1] if k else 0)] == expected
        assert {k for k in range(6) if counts[k][0]} <= set(expected)
    with_near = draw_sample(np.random.default_rng(0), spine, 2, PATCH, near_marked=True)
    without = draw_sample(np.random.default_rng(0), spine, 2, PATCH)
    assert torch.equal(with_near.channels, without.channels)
    assert torch.equal(with_near.regions, without.regions)


def test_finder_marks_what_step_1_finds_of_the_marked_set_and_leaves_the_rest(trained: Path) -> None:
    finder = StarterFinder(trained / STARTER_FOLDERS[1], torch.device("cpu"))
    channels = torch.randn(2, 2, *PATCH, generator=torch.Generator().manual_seed(0))
    channels[:, 0] = -1.0
    channels[:, 0, 4:28, 9:, 10:] = 1.0
    near = torch.zeros(2, 1, *PATCH, dtype=torch.bool)
    near[0, :, :16] = True
    finder._network = lambda image: 9 * image.expand(-1, 9, -1, -1, -1)  # a disc wherever it is bright
    marked = finder.mark(channels, near)
    assert torch.equal(marked[:, 0], channels[:, 0])
    disc, inside = (channels[0, 0] > 0) & near[0, 0], (slice(6, 14), slice(11, None), slice(12, None))
    assert (marked[0, 1][inside] > 0).all(), "step 1's grid is coarser, so the edge may differ by a voxel"
    assert 0.8 < (marked[0, 1] > 0).sum() / disc.sum() < 1.2
    assert not (marked[0, 1] > 0)[~near[0, 0]].any()
    assert torch.equal(marked[1], channels[1]), "without a marked disc in view nothing would tell odd from even"


def test_step_2_learns_from_the_discs_of_a_step_1_and_says_of_which(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(StarterFinder, "mark", lambda _, channels, near: seen.append(near.shape) or channels)
    monkeypatch.setattr(starter_batches, "_near_marked", lambda marked, *_: np.ones_like(marked))
    folder = train_starter(2, tmp_path, tiny(iterations=5, early_phase=0), discs_by=trained / STARTER_FOLDERS[1])
    assert seen == [(1, 1, *PATCH)] * 3  # patches 0, 2 and 4
    assert json.loads((folder / "training.json").read_text(encoding="utf-8"))["discs_by_sha256"] == [digest_of(trained)]


def digest_of(starter: Path) -> str:
    """Return the digest of the step-1 weights in a starter folder."""
    return hashlib.sha256((starter / STARTER_FOLDERS[1] / CHECKPOINT).read_bytes()).hexdigest()


def test_all_step_1_models_that_marked_discs_are_on_record(trained: Path, tmp_path: Path) -> None:
    """A training in pieces recorded only the step 1 of the last piece, and none if the last had none."""
    other, out = tmp_path / "other", tmp_path / "out"
    piece = tiny(piece_minutes=1e-12)  # ends before a spine is drawn
    train_starter(1, other, tiny(piece_minutes=1e-12, seed=2))
    for starter in (trained, other, trained, None):
        folder = train_starter(2, out, piece, discs_by=starter and starter / STARTER_FOLDERS[1])
    reported = json.loads((folder / "training.json").read_text(encoding="utf-8"))["discs_by_sha256"]
    assert reported == [digest_of(trained), digest_of(other)]
    latest = folder / "fold_0" / "checkpoint_latest.pth"
    older = torch.load(latest, weights_only=True)
    del older["finders"]
    torch.save(older, latest)
    train_starter(2, out, piece)
    assert "discs_by_sha256" not in json.loads((folder / "training.json").read_text(encoding="utf-8"))


def test_a_state_of_another_grid_is_not_continued(tmp_path: Path) -> None:
    piece = tiny(piece_minutes=1e-12)  # ends before a spine is drawn
    latest = train_starter(2, tmp_path, piece) / "fold_0" / "checkpoint_latest.pth"
    train_starter(2, tmp_path, piece)
    older = torch.load(latest, weights_only=True)
    del older["spacing_mm"]  # when both steps shared the grid of step 1
    torch.save(older, latest)
    with pytest.raises(WeightsError, match=r"\(1\.5, .*\(2\.0, .*--start-from"):
        train_starter(2, tmp_path, piece)


@pytest.mark.parametrize("beside", [False, True], ids=["only in the source", "beside step 2, too"])
def test_step_1_of_the_source_marks_discs_unless_one_stands_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], beside: bool
) -> None:
    """Step 2 alone, begun from other weights in a new folder, simulated all marks without a word."""
    asked = []
    monkeypatch.setattr(
        "totalspineseg_server.nnunet.starter.train_starter", lambda *_, discs_by, **__: asked.append(discs_by)
    )
    one = {name: tmp_path / name / STARTER_FOLDERS[1] for name in ("new", "source")}
    for model in one.values():
        model.mkdir(parents=True)
        (model / "plans.json").write_text("{}", encoding="utf-8")  # written before the weights are
    words = ["train-starter", "--step", "2", "--out", str(tmp_path / "new"), "--start-from", str(tmp_path / "source")]
    assert main(words) == 0
    assert asked == [None]
    assert f"no step-1 model in '{one['new']}' and '{one['source']}'; all errors" in capsys.readouterr().out
    expected = one["new" if beside else "source"]
    for model in {one["source"], expected}:
        (model / CHECKPOINT).parent.mkdir()
        (model / CHECKPOINT).write_bytes(b"")
    assert main(words) == 0
    assert asked == [None, expected]
    assert f"the discs that {expected} finds" in capsys.readouterr().out


def test_a_spine_gives_about_twenty_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    painted = []
    spine = SimpleNamespace(labels=np.array([anatomy.DISC_L5_S]))
    monkeypatch.setattr(starter_batches, "random_spine", lambda *_: painted.append(1) or spine)
    monkeypatch.setattr(starter_batches, "draw_sample", lambda *_, **__: None)
    stream = samples(1, 0, PATCH)
    for _ in range(100_000):
        next(stream)
    # Behind each new spine chance may bring the next one at once, which makes it one less.
    assert 100_000 / len(painted) == pytest.approx(20 - 1, abs=0.5)


def test_dataset_lists_regions_in_channel_order() -> None:
    labels = dataset_json(2)["labels"]
    assert list(labels)[1:] == list(anatomy.STEP2_REGIONS)
    assert dataset_json(1)["channel_names"] == {"0": "MRI"}
    assert dataset_json(2)["channel_names"] == {"0": "MRI", "1": "noNorm"}


@pytest.mark.parametrize("step", [1, 2])
def test_the_shipped_weights_are_of_the_network_that_is_described(step: int) -> None:
    """A changed grid or stride trained weights that the shipped ones could not begin."""
    (plans,) = (APP / "model" / "starter").rglob(f"{STARTER_FOLDERS[step]}/**/plans.json")
    assert json.loads(plans.read_text(encoding="utf-8")) == json.loads(json.dumps(plans_json(step)))
    known = json.loads(plans.with_name("dataset.json").read_text(encoding="utf-8"))
    assert known == json.loads(json.dumps(dataset_json(step)))
    # Training spines have two voxels for each of the network's along every axis.
    assert GRIDS[step].fine_mm == {1: (1.75, 1.125, 1.0), 2: (1.25, 0.75, 0.75)}[step]


def test_unknown_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 or 2"):
        train_starter(3, tmp_path)
