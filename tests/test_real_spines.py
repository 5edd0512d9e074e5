"""Tests of scans of people among the starter's training patches: readings, resampling, shares, and refusals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from known_figures import require_known
from totalspineseg_server import anatomy
from totalspineseg_server.cli import main
from totalspineseg_server.errors import TrainingError
from totalspineseg_server.nnunet import starter_batches
from totalspineseg_server.nnunet.real_spines import RealSpine, draw_pose, read_cases, save_case, vary_scan
from totalspineseg_server.nnunet.starter import train_starter
from totalspineseg_server.nnunet.starter_batches import draw_sample, samples
from totalspineseg_server.nnunet.starter_plans import STARTER_FOLDERS, StarterSettings, regions_of
from totalspineseg_server.nnunet.training import region_loss
from totalspineseg_server.synthesis import Field, RenderOptions, SpineOptions, random_spine, render

pytestmark = pytest.mark.slow

PATCH = (32, 16, 16)
SPACING = (3.0, 2.0, 2.0)


@pytest.fixture(scope="module")
def case() -> RealSpine:
    """A drawn spine in a part of a scan: the sacrum is unchecked, the cord unknown, and nothing is known at the top."""
    rng = np.random.default_rng(5)
    options = SpineOptions(field=Field.LUMBAR, thoracic=12, lumbar=5, spacing_mm=SPACING, width_mm=60, depth_mm=120)
    spine = random_spine(rng, options)
    image = render(rng, spine, RenderOptions(contrast="T2", strength=0.2))
    first, second = spine.labels.copy(), spine.labels.copy()
    first[spine.labels == anatomy.SACRUM] = 0
    first[spine.labels == anatomy.CORD] = anatomy.CANAL
    second[spine.labels == anatomy.CANAL] = anatomy.CORD
    first[..., -4:] = second[..., -4:] = anatomy.UNREVIEWED
    plan = anatomy.column()
    discs = tuple(d for d in plan.discs if d is not None)
    return RealSpine(first, second, image, SPACING, plan.vertebrae, discs)


def channels_of(step: int) -> dict[str, int]:
    return {name: k for k, name in enumerate(regions_of(step))}


def whole(case: RealSpine, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Shares and hidden shares of a patch that contains all of the case."""
    patch = tuple(n + 2 for n in case.labels.shape[::-1])
    for seed in range(50):
        sample = draw_sample(np.random.default_rng(seed), case, step, patch, with_hidden=True)
        if (sample.channels[0] != 0).sum() >= case.labels.size / 8 * 0.8:
            break
    count = len(regions_of(step))
    return sample.regions[:count], sample.regions[count:]


@pytest.mark.parametrize("step", [1, 2])
def test_a_region_is_hidden_where_the_readings_differ_and_known_elsewhere(case: RealSpine, step: int) -> None:
    """The front of the sacrum was learned as background, and the cord inside the canal as canal."""
    shares, hidden = whole(case, step)
    at = channels_of(step)
    sacrum, canal = "sacrum" if step == 2 else "vertebrae", at["canal"]
    assert hidden[at[sacrum]].sum() > 100
    assert hidden[at["cord"]].sum() > 50
    cordlike = (hidden[at["cord"]] == 1) & (hidden[at["vertebrae"]] == 0)
    assert cordlike.any()
    assert (hidden[canal][cordlike] == 0).all(), "that it is canal is known"
    assert shares[canal][cordlike].mean() > 0.8
    below = (hidden[at[sacrum]] == 1) & (hidden[at["cord"]] == 0)
    assert (hidden[at["disc"]][below] == 0).all(), "that there is no disc in the sacrum is known"
    everything = hidden.amin(0) == 1
    assert everything.any(), "where nothing is known, no region is"


def test_hidden_regions_carry_no_loss_and_the_others_do(case: RealSpine) -> None:
    shares, hidden = whole(case, 1)
    target = torch.cat([shares, hidden])[None]
    logits = torch.zeros_like(shares)[None]
    changed = logits.clone()
    changed[0][hidden > 0] = 9.0
    assert torch.allclose(region_loss(logits, target), region_loss(changed, target))
    changed[0, channels_of(1)["disc"]] = 9.0
    assert region_loss(changed, target) > region_loss(logits, target) + 0.1


def test_one_hidden_channel_for_all_regions_means_as_much_as_one_each() -> None:
    rng = torch.Generator().manual_seed(0)
    truth = (torch.rand(2, 9, 6, 6, 6, generator=rng) > 0.7).float()
    hidden = (torch.rand(2, 1, 6, 6, 6, generator=rng) > 0.5).float()
    logits = torch.randn(2, 9, 6, 6, 6, generator=rng)
    one, each = (torch.cat([truth, h], 1) for h in (hidden, hidden.expand(-1, 9, -1, -1, -1)))
    assert torch.allclose(region_loss(logits, one), region_loss(logits, each))


@pytest.mark.slow
def test_patches_of_people_make_up_the_stated_share(case: RealSpine) -> None:
    stream = samples(2, 0, PATCH, pool_size=1, real=[case], real_share=0.5)
    painted = [next(stream) for _ in range(30)]
    count = len(anatomy.STEP2_REGIONS)
    assert {sample.regions.shape for sample in painted} == {(2 * count, *PATCH)}
    hidden = sum(bool(sample.regions[count:].any()) for sample in painted)
    assert 8 <= hidden <= 22
    again = samples(2, 0, PATCH, pool_size=1, real=[case], real_share=0.5)
    assert all(torch.equal(next(again).channels, sample.channels) for sample in painted[:4])


def test_without_people_the_stream_is_what_it_was() -> None:
    alone, share = (next(samples(1, 3, PATCH, pool_size=1, real_share=s)) for s in (0.0, 0.9))
    assert torch.equal(alone.channels, share.channels)
    assert alone.regions.shape[0] == len(anatomy.STEP1_REGIONS)


def test_a_case_is_drawn_in_several_sizes_and_keeps_its_labels(case: RealSpine) -> None:
    sizes = [draw_pose(np.random.default_rng(seed), case, (2.0, 2.0, 2.0)) for seed in range(3)]
    assert len({size.labels.shape for size in sizes}) > 1
    for size in sizes:
        assert size.labels.shape == size.second.shape == size.image.shape
        assert set(np.unique(size.labels)) <= set(np.unique(case.labels))
        assert size.image.min() >= case.image.min() and size.image.max() <= case.image.max()


def test_a_turned_case_keeps_image_and_labels_together_and_knows_nothing_of_its_corners(case: RealSpine) -> None:
    """Image and labels turned about different points would teach shifted outlines, a corner as background too much."""
    bone = np.isin(case.labels, anatomy.VERTEBRAE)
    displayed = replace(case, image=bone.astype(np.float32))
    turned = displayed.posed((2.5, 2.0, 2.0), 12.0)
    mine, painted = np.isin(turned.labels, anatomy.VERTEBRAE), turned.image > 0.5
    assert 2 * (mine & painted).sum() / (mine.sum() + painted.sum()) > 0.9
    height = [np.argwhere(part)[:, 2] @ np.argwhere(part)[:, 1] / part.sum() for part in (bone, mine)]
    assert height[0] != pytest.approx(height[1], rel=0.01), "it has turned"
    assert (turned.labels[:, 0, 0] == anatomy.UNREVIEWED).all() or (turned.labels[:, -1, 0] == anatomy.UNREVIEWED).all()
    assert not (turned.possible == anatomy.UNREVIEWED).any(), "patches are not placed where nothing is known"


def test_necks_and_whole_spines_stay_frequent_beside_lumbar_people(
    case: RealSpine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training on lumbar patients alone forgot the names of necks."""
    rng = np.random.default_rng(2)
    spine = random_spine(rng, SpineOptions(field=Field.CERVICAL, spacing_mm=SPACING, width_mm=60, depth_mm=120))
    fields: list[Field | None] = []
    monkeypatch.setattr(starter_batches, "random_spine", lambda rng, options: fields.append(options.field) or spine)
    for people in ((case,), ()):
        fields.clear()
        next(samples(1, 4, PATCH, pool_size=1, real=people, real_share=0.0))
        assert fields
        assert (None in fields) == (not people), "without people every field is as frequent"
    painted = [starter_batches._field_beside_people(rng) for _ in range(400)]
    assert sum(f in (Field.WHOLE, Field.CERVICAL, Field.CERVICOTHORACIC) for f in painted) > len(painted) / 2


def test_variation_leaves_the_input_and_its_anatomy(case: RealSpine) -> None:
    before = case.image.copy()
    images = [vary_scan(np.random.default_rng(seed), case.image, SPACING, 1.0) for seed in range(6)]
    np.testing.assert_array_equal(case.image, before)
    assert len({round(float(image.std() / image.mean()), 4) for image in images}) == 6
    inside = case.labels > 0
    for image in images:
        assert np.isfinite(image).all() and image.min() >= 0
        assert np.corrcoef(image[inside], before[inside])[0, 1] > 0.6


@pytest.mark.slow
def test_people_are_varied_as_they_were(case: RealSpine) -> None:
    """A changed number turned every real patient by 20 degrees, and the training went on with such scans."""
    found = {}
    for seed in range(8):
        posed = draw_pose(np.random.default_rng(seed), case, (2.0, 1.8, 1.6))
        discs = np.argwhere(np.isin(posed.labels, anatomy.DISCS))
        found[f"pose {seed}"] = [*posed.labels.shape, len(discs), *discs.mean(axis=0), posed.image.mean()]
        image = vary_scan(np.random.default_rng(seed), case.image, SPACING, 1.0)
        steps = [np.abs(np.diff(image, axis=axis)).mean() for axis in range(3)]
        found[f"scan {seed}"] = [*np.percentile(image, (5, 50, 95)), *steps]
    require_known("people", found, rel=0.003, abs=0.003)


def test_training_takes_cases_from_files_and_says_which(case: RealSpine, tmp_path: Path) -> None:
    for name in ("b", "a"):
        save_case(tmp_path / f"{name}.npz", case.image, case.labels, case.second, SPACING)
    real = read_cases(tmp_path)
    np.testing.assert_array_equal(real[0].labels, case.labels)
    settings = StarterSettings(iterations=2, features=(4, 6, 8), patch=PATCH, pool_size=1, real_share=1.0)
    folder = train_starter(1, tmp_path / "out", settings, real=real)
    assert real[0].sha256 in (folder / "training.json").read_text(encoding="utf-8")
    more = train_starter(1, tmp_path / "out", replace(settings, iterations=3))  # without them
    assert real[0].sha256 in (more / "training.json").read_text(encoding="utf-8"), "what was trained on stays on record"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(None, "no training cases", id="empty folder"),
        pytest.param(b"no zip", "cannot be read", id="another file"),
    ],
)
def test_folders_without_cases_are_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(TrainingError, match=says):
        read_cases(tmp_path)


def test_parts_of_different_shapes_are_refused(case: RealSpine, tmp_path: Path) -> None:
    save_case(tmp_path / "x.npz", case.image, case.labels[1:], case.second, SPACING)
    with pytest.raises(TrainingError, match="differ in shape"):
        read_cases(tmp_path)


def test_shares_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="real_share"):
        StarterSettings(real_share=1.5)


def test_the_command_hands_cases_and_share_on(case: RealSpine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_case(tmp_path / "a.npz", case.image, case.labels, case.second, SPACING)
    seen = []
    monkeypatch.setattr(
        "totalspineseg_server.nnunet.starter.train_starter",
        lambda step, out, settings, *, real, **_: seen.append((step, settings.real_share, len(real))) or out,
    )
    words = ["train-starter", "--step", "1", "--out", str(tmp_path / STARTER_FOLDERS[1])]
    assert main([*words, "--real", str(tmp_path), "--real-share", "0.2"]) == 0
    assert seen == [(1, 0.2, 1)]
