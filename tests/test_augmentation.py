"""Tests of the random variations of a patch: their effect, and that image and targets stay together."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.transforms import KSpaceSpikeNoise

from known_figures import require_known
from totalspineseg_server.anatomy import LUMBAR, UNREVIEWED
from totalspineseg_server.nnunet import augmentation
from totalspineseg_server.nnunet.augmentation import (
    SHEAR,
    SHIFT,
    SPIKE,
    STILL,
    HistogramTransform,
    MotionTransform,
    ShearingTransform,
    SpikeTransform,
    build_augmentation,
)
from totalspineseg_server.nnunet.finetune_settings import NONE, Strength

L3 = LUMBAR[2]


@pytest.mark.parametrize("kind", ["spatial", "elastic"])
def test_image_and_targets_move_together(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Bends moved voxels by a fifth of a voxel at most, which is nothing."""
    monkeypatch.setattr(augmentation, "SHEARED", int(kind == "spatial"))
    patch, crop = (24, 32, 28), (36, 48, 42)
    codes = torch.zeros((1, *crop), dtype=torch.int16)
    codes[:, 10:26, 14:34, 6:20], codes[:, 10:26, 14:34, 20:34] = L3, UNREVIEWED
    shares = torch.cat([codes == L3, codes == UNREVIEWED]).float() * 255
    parts = {"image": (codes == L3).float(), "segmentation": codes, "regression_target": shares}
    vary = build_augmentation(patch, x_axis=2, strength=replace(NONE, **{kind: 1}))
    still = build_augmentation(patch, x_axis=2, strength=NONE)(**parts)["segmentation"]
    changed = []
    for seed in range(3):
        np.random.seed(seed)  # noqa: NPY002 - what the library draws from
        torch.manual_seed(seed)
        moved = vary(**{name: part.clone() for name, part in parts.items()})
        assert torch.allclose(moved["image"] * 255, moved["regression_target"][:1], atol=1e-2)
        assert set(moved["segmentation"].unique().tolist()) == {0, L3, UNREVIEWED}
        for value, share in zip((L3, UNREVIEWED), moved["regression_target"] / 255, strict=True):
            certain = (share < 0.1) | (share > 0.9)
            assert torch.equal((moved["segmentation"][0] == value)[certain], (share > 0.5)[certain])
        changed.append(float((moved["segmentation"] != still).float().mean()))
    assert max(changed) > 0.005


def test_shears_and_shifts_are_as_large_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each voxel of this image has its own position as its value, so that the transform can be read off."""
    monkeypatch.setattr(augmentation, "SHEARED", 1)
    patch, crop = (8, 12, 16), (24, 48, 32)
    places = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in crop), indexing="ij")
    shear = ShearingTransform(patch, 0, False, p_scaling=1, scaling=(1, 1))
    here = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in patch), indexing="ij"), -1).reshape(-1, 3)
    found = []
    for seed in range(20):
        np.random.seed(seed)  # noqa: NPY002
        there = shear(image=torch.stack(places).float())["image"].reshape(3, -1).T.numpy()
        solution, *_ = np.linalg.lstsq(np.c_[here, np.ones(len(here))], there, rcond=None)
        assert np.allclose(np.c_[here, np.ones(len(here))] @ solution, there, atol=1e-3)
        assert np.allclose(np.diag(solution), 1, atol=1e-4)
        found.append(np.vstack([solution[:3] - np.eye(3), solution[3] / patch]))
    assert np.allclose(np.abs(found).max((0, 2))[:3], SHEAR, rtol=0.2)
    assert np.allclose(np.abs(found).max((0, 1))[:3], SHIFT, rtol=0.2)


@pytest.mark.parametrize("ghosts", [True, False], ids=["ghosts", "a movement"])
def test_motion_leaves_the_center_of_k_space(ghosts: bool) -> None:
    """If the center of k-space changed, the image would no longer fit its labels."""
    image = torch.randn(1, 20, 24, 30, generator=torch.manual_seed(0)).cumsum(1).cumsum(2)
    for seed in range(5):
        varied = MotionTransform()._apply_to_image(image, rng=np.random.default_rng(seed), ghosts=ghosts)
        assert varied.shape == image.shape and varied.dtype == image.dtype
        change = varied - image
        assert change.abs().max() > 0.02 * image.std()
        axis = 1 + int(np.random.default_rng(seed).integers(3))
        lines = torch.fft.rfft(change, dim=axis).abs().amax([k for k in range(4) if k != axis])
        seen = (lines > 1e-4 * lines.max()).nonzero().flatten()
        if ghosts:
            assert len(set(seen.diff().tolist())) <= 1 and seen[0] >= 2, "every so many lines, the mean left alone"
        else:
            assert seen[0] >= STILL * len(lines)
            assert (seen.diff() == 1).all()


def test_spikes_are_those_of_monai_at_a_height_of_ours() -> None:
    image = torch.randn(1, 12, 16, 10, generator=torch.manual_seed(0))
    for seed in range(5):
        np.random.seed(seed)  # noqa: NPY002
        spike = SpikeTransform()
        place = spike.get_parameters(image=image)["place"]
        np.random.seed(seed)  # noqa: NPY002
        stripes = (spike(image=image)["image"] - image)[0]
        assert SPIKE[0] * 0.99 < stripes.abs().max() / image.std() <= SPIKE[1] * 1.01
        monai = KSpaceSpikeNoise((0, *((k + n // 2) % n for k, n in zip(place, stripes.shape, strict=True))), 8.0)
        theirs = (torch.as_tensor(np.asarray(monai(image))) - image)[0]
        energy, expected = (torch.fft.fftn(part).abs() ** 2 for part in (stripes, theirs))
        assert torch.allclose(energy / energy.sum(), expected / expected.sum(), atol=1e-3)


def test_a_bent_gray_scale_keeps_bright_above_dark() -> None:
    bend = HistogramTransform()
    image = torch.randn(1, 6, 6, 6)
    before = image.clone()
    bent = bend(image=image)["image"]
    assert torch.equal(image, before)
    assert not torch.allclose(bent, image)
    in_order = bent.flatten()[image.flatten().argsort()]
    assert (in_order.diff() >= -1e-5).all()
    assert torch.allclose(torch.stack(bent.aminmax()), torch.stack(image.aminmax()), atol=1e-4)


def test_flips_exchange_left_and_right_alone() -> None:
    flip = build_augmentation((4, 4, 4), x_axis=2, strength=replace(NONE, flip=1))
    image = torch.arange(64.0).reshape(1, 4, 4, 4)
    flipped = flip(image=image.clone(), segmentation=image.short())
    assert torch.equal(flipped["image"], image.flip(3))
    assert torch.equal(flipped["segmentation"], image.short().flip(3))


def test_patches_are_varied_as_they_were() -> None:
    """A changed number bent every patch too far, and the fine-tuned networks drew thinner discs."""
    patch, crop = (16, 24, 20), (24, 36, 30)
    places = torch.meshgrid(*(torch.arange(n) for n in crop), indexing="ij")
    image = (100 * torch.sin(places[0] / 3) + 5 * places[1] + places[2]).float()[None]
    codes = torch.zeros((1, *crop), dtype=torch.int16)
    codes[:, 8:18, 10:26, 8:20] = L3
    parts = {"image": image, "segmentation": codes, "regression_target": (codes == L3).float() * 255}
    vary, found = build_augmentation(patch, x_axis=2, strength=Strength()), {}
    for seed in range(24):
        np.random.seed(seed)  # noqa: NPY002 - what the library draws from
        torch.manual_seed(seed)
        moved = vary(**{name: part.clone() for name, part in parts.items()})
        inside = torch.nonzero(moved["segmentation"][0] == L3).float()
        steps = [float(moved["image"].diff(dim=axis).abs().mean()) for axis in (1, 2, 3)]
        found[str(seed)] = [
            *(float(moved["image"].mean()), float(moved["image"].std()), *steps, float(len(inside))),
            *(*inside.mean(dim=0).tolist(), float(moved["regression_target"].mean())),
        ]
    require_known("variations", found, rel=0.004, abs=0.01)
