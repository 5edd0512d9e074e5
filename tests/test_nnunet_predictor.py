"""Tests of the predictor against nnU-Net's own inference, and of its behavior in edge cases."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

import totalspineseg_server.nnunet.predictor as predictor_module
from gpu_stand_in import gpu
from tiny_models import checkpoint_dict, write_model_folder
from totalspineseg_server.errors import MemoryShortageError, WeightsError
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.predictor import WarmPredictor
from totalspineseg_server.nnunet.preprocessing import normalize, resample, resample_above, scaled
from totalspineseg_server.nnunet.tiles import gaussian_weights, sliding_logits, tile_starts
from totalspineseg_server.trust import Trust

ROUNDING = 1e-5
"""Probabilities closer to one half than this may fall to either side."""

CASES = [
    pytest.param(1, {"arch": "resenc"}, (21, 30, 40), id="step1-resenc"),
    pytest.param(2, {"arch": "resenc"}, (19, 24, 37), id="step2-resenc"),
    pytest.param(1, {"arch": "plain", "patch": (16, 24, 16)}, (17, 33, 20), id="step1-plain-other-patch"),
    pytest.param(1, {"arch": "plain"}, (9, 12, 25), id="smaller-than-the-patch"),
    pytest.param(1, {"arch": "plain", "spacing": (2, 2, 2)}, (40, 38, 44), id="coarse-plans"),
    pytest.param(2, {"arch": "plain", "spacing": (2, 1.5, 2.5)}, (40, 31, 44), id="coarse-uneven-plans"),
]


def image(step: int, shape: tuple[int, int, int], seed: int = 3) -> np.ndarray:
    """Smooth noise with an empty margin on two sides; for step 2, also odd discs."""
    rng = np.random.default_rng(seed)
    channels = rng.normal(200, 60, (step, *shape)).astype(np.float32)
    if step == 2:
        channels[1] = channels[1] > 250
    channels[:, :2] = 0
    channels[:, :, :, -3:] = 0
    return channels


def nnunet_answer(folder: Path, channels: np.ndarray, *, mirror: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and probabilities of nnU-Net's own predictor in (X, Y, Z), changed to sum its tiles in float32."""
    reference = nnUNetPredictor(use_mirroring=mirror, device=torch.device("cpu"), allow_tqdm=False)
    reference.initialize_from_trained_model_folder(str(folder), (0,))
    turned = np.ascontiguousarray(channels.transpose(0, 3, 2, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "half", torch.float32)
        labels, soft = reference.predict_single_npy_array(turned, {"spacing": [1.0, 1.0, 1.0]}, None, None, True)
    return labels.transpose(2, 1, 0), soft.transpose(0, 3, 2, 1)


@pytest.mark.parametrize(("step", "options", "shape"), CASES)
def test_equals_nnunet(tmp_path, step, options, shape):
    # nnU-Net itself can only load the checkpoint when it knows the trainer class.
    folder = write_model_folder(tmp_path, step, trainer="nnUNetTrainer", seed=5, **options)
    channels = image(step, shape)
    before = channels.copy()
    model = ModelFolder.open(tmp_path, step=step)
    prediction = WarmPredictor(model, device="cpu").predict(channels, soft=model.regions)
    labels, soft = nnunet_answer(folder, channels)
    assert prediction.labels.shape == shape
    assert prediction.labels.dtype == np.uint8
    assert len(np.unique(labels)) > 3, "the case must not be trivial"
    clear = (np.abs(soft - 0.5) > ROUNDING).all(axis=0)
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(prediction.labels[clear], labels[clear])
    for index, name in enumerate(model.regions):
        np.testing.assert_allclose(prediction.soft[name], soft[index], atol=ROUNDING)
    np.testing.assert_array_equal(channels, before)


def test_only_the_requested_probabilities_are_returned(tmp_path):
    write_model_folder(tmp_path, 1)
    predictor = WarmPredictor(ModelFolder.open(tmp_path), device="cpu")
    prediction = predictor.predict(image(1, (18, 18, 18)), soft=("cord",))
    assert set(prediction.soft) == {"cord"}
    assert prediction.soft["cord"].dtype == np.float32
    assert 0 <= prediction.soft["cord"].min() < prediction.soft["cord"].max() <= 1
    assert predictor.predict(image(1, (18, 18, 18))).soft == {}


def test_all_zero_image_is_background(tmp_path):
    write_model_folder(tmp_path, 1)
    prediction = WarmPredictor(ModelFolder.open(tmp_path), device="cpu").predict(
        np.zeros((1, 5, 6, 7), np.float32), soft=("cord",)
    )
    assert prediction.labels.shape == (5, 6, 7)
    assert not prediction.labels.any()
    assert not prediction.soft["cord"].any()


@pytest.mark.parametrize("axes", [[1, 2, 0], [1, 0, 2]])
def test_axis_order_of_the_plans_is_undone(tmp_path, axes):
    """A model whose plans transpose the axes returned rotated labels."""
    import json

    folder = write_model_folder(tmp_path, 1, patch=(16, 24, 32), trainer="nnUNetTrainer", seed=5)
    plans = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    plans |= {"transpose_forward": axes, "transpose_backward": np.argsort(axes).tolist()}
    (folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    torch.save(checkpoint_dict(1, plans, seed=5, trainer="nnUNetTrainer"), folder / "fold_0" / "checkpoint_final.pth")
    channels = image(1, (21, 30, 40))
    labels, soft = nnunet_answer(folder, channels)
    turned = WarmPredictor(ModelFolder.open(tmp_path), device="cpu").predict(channels).labels
    clear = (np.abs(soft - 0.5) > ROUNDING).all(axis=0)
    np.testing.assert_array_equal(turned[clear], labels[clear])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelFolder:
    root = tmp_path_factory.mktemp("model")
    write_model_folder(root, 1, arch="plain")
    return ModelFolder.open(root, name="starter")


@pytest.mark.parametrize(
    ("channels", "soft", "match"),
    [
        pytest.param(np.zeros((2, 5, 5, 5), np.float32), (), r"\(1, X, Y, Z\)", id="channels"),
        pytest.param(np.zeros((5, 5, 5), np.float32), (), r"\(1, X, Y, Z\)", id="no-channel-axis"),
        pytest.param(np.zeros((1, 5, 0, 5), np.float32), (), r"\(1, X, Y, Z\)", id="empty"),
        pytest.param(np.full((1, 5, 5, 5), np.nan, np.float32), (), "NaN", id="nan"),
        pytest.param(np.ones((1, 5, 5, 5), np.float32), ("sacrum",), "sacrum", id="unknown-region"),
    ],
)
def test_refuses_wrong_input(model, channels, soft, match):
    with pytest.raises(ValueError, match=match):
        WarmPredictor(model, device="cpu").predict(channels, soft=soft)


@pytest.mark.parametrize("step", [0, -1, 1.5])
def test_refuses_a_wrong_tile_step(model, step):
    with pytest.raises(ValueError, match="tile_step"):
        WarmPredictor(model, device="cpu", tile_step=step)


@pytest.mark.parametrize(("device", "match"), [("tpu", "'tpu'"), ("mps", "'mps'"), ("cuda", "CUDA GPU")])
def test_refuses_an_unknown_device(monkeypatch, device, match):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=match):
        predictor_module.resolve_device(device)


def test_auto_takes_the_gpu_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert predictor_module.resolve_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert predictor_module.resolve_device("auto").type == "cpu"


def test_constant_image_gives_an_answer(model):
    """A constant image was divided by its deviation of 0 and became NaN."""
    prediction = WarmPredictor(model, device="cpu").predict(np.full((1, 8, 8, 8), 7, np.float32), soft=("cord",))
    assert np.isfinite(prediction.soft["cord"]).all()


class SmallGpu:
    """Replaces ``sliding_logits`` on a GPU whose memory is too small for what ``fails`` says."""

    def __init__(self, fails, error):
        self.fails, self.error, self.calls, self.at_once = fails, error, [], []

    def __call__(self, network, *args, compute, sums, autocast, **kwargs):
        self.calls.append((compute.type, sums.type))
        self.at_once.append(kwargs["at_once"])
        if self.fails(compute, sums):
            raise self.error
        cpu = torch.device("cpu")
        logits = sliding_logits(network, *args, compute=cpu, sums=cpu, autocast=False, **kwargs)
        return logits.half().float() if autocast else logits


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")],
    ids=["torch", "cudnn"],
)
@pytest.mark.parametrize(
    ("fails", "tried"),
    [
        pytest.param(lambda c, s: s.type == "cuda", [("cuda", "cuda"), ("cuda", "cpu")], id="sums-do-not-fit"),
        pytest.param(
            lambda c, s: c.type == "cuda",
            [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cpu")],
            id="network-does-not-fit",
        ),
    ],
)
def test_falls_back_when_gpu_memory_is_short(model, monkeypatch, caplog, fails, tried, error):
    """One large scan on a small GPU ended the request, and the memory was not released."""
    expected = WarmPredictor(model, device="cpu").predict(image(1, (20, 20, 20))).labels
    small = SmallGpu(fails, error)
    freed = []
    monkeypatch.setattr(predictor_module, "sliding_logits", small)
    monkeypatch.setattr(predictor_module, "_empty_cache", lambda: freed.append(1))
    with gpu(monkeypatch), caplog.at_level(logging.WARNING):
        predictor = WarmPredictor(model, device="cuda")
        labels = predictor.predict(image(1, (20, 20, 20))).labels
        np.testing.assert_array_equal(labels, expected)
        assert small.calls == tried
        assert len(freed) == len(tried) - 1
        assert "GPU memory" in caplog.text
        # The next image starts on the GPU again.
        predictor.predict(image(1, (20, 20, 20)))
    assert small.calls[len(tried)] == ("cuda", "cuda")


class Bright(torch.nn.Module):
    """A network without weights, which finds bright voxels.

    Attributes:
        tiles: Number of tiles in each pass.
    """

    def __init__(self, regions):
        super().__init__()
        self.regions, self.tiles = regions, []

    def forward(self, tiles):
        self.tiles.append(len(tiles))
        return torch.cat([tiles[:, :1] - region / 4 for region in range(self.regions)], dim=1)


def test_labels_are_made_on_the_cpu_when_the_gpu_has_no_room_for_them(model, monkeypatch, caplog):
    """The network's output fitted into memory, the labels at 1 mm did not, and the request failed at its end."""
    network = Bright(len(model.regions))
    expected = WarmPredictor(model, device="cpu", network=network).predict(image(1, (20, 20, 20)), soft=("cord",))
    original, calls, freed = predictor_module.resample_above, [], []

    def short_of_memory(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*args, **kwargs)

    monkeypatch.setattr(predictor_module, "resample_above", short_of_memory)
    monkeypatch.setattr(predictor_module, "_empty_cache", lambda: freed.append(1))
    with gpu(monkeypatch), caplog.at_level(logging.WARNING):
        found = WarmPredictor(model, device="cuda", network=network).predict(image(1, (20, 20, 20)), soft=("cord",))
    assert len(calls) > 3
    assert freed == [1]
    assert "so the CPU computes them" in caplog.text
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.soft["cord"], expected.soft["cord"], atol=1e-6)


def test_an_image_for_which_the_gpu_has_no_room_is_normalized_on_the_cpu(model, monkeypatch, caplog):
    network = Bright(len(model.regions))
    expected = WarmPredictor(model, device="cpu", network=network).predict(image(1, (20, 20, 20))).labels
    original = predictor_module.normalize

    def short_of_memory(channels, *args):
        if channels.device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(channels, *args)

    monkeypatch.setattr(predictor_module, "normalize", short_of_memory)
    with gpu(monkeypatch), caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(
            WarmPredictor(model, device="cuda", network=network).predict(image(1, (20, 20, 20))).labels, expected
        )
    assert "GPU memory" in caplog.text


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 1.5, 2.5)], ids=["1 mm", "coarse, uneven"])
def test_an_image_goes_to_the_gpu_once_and_its_labels_come_back_once(tmp_path, monkeypatch, spacing):
    """Normalizing, resampling, mirroring and sums stay on the GPU; the stand-in fails if an operation mixes devices."""
    folder = ModelFolder.open(write_model_folder(tmp_path, 1, patch=(16, 16, 16), spacing=spacing))
    channels, trust = image(1, (40, 36, 44)), Trust(mirror=True)
    inner = channels[:, 2:, :, :-3].size
    network = Bright(len(folder.regions))
    expected = WarmPredictor(folder, device="cpu", network=network, trust=trust).predict(channels)
    assert len(np.unique(expected.labels)) > 3
    with gpu(monkeypatch) as moved:
        found = WarmPredictor(folder, device="cuda", network=network, trust=trust).predict(channels)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.mirror_difference == expected.mirror_difference
    assert [n for n in moved.up if n > inner / 4] == [inner]
    assert [n for n in moved.down if n > inner / 4] == [inner]


CUDA_IS_MISSING = pytest.mark.filterwarnings("ignore:.*CUDA is not available")


@CUDA_IS_MISSING
def test_tiles_that_fill_a_gpu_together_give_the_same_labels(tmp_path, monkeypatch):
    folder = ModelFolder.open(write_model_folder(tmp_path, 1, patch=(16, 16, 16)))
    channels, network = image(1, (20, 36, 44)), Bright(len(folder.regions))
    expected = WarmPredictor(folder, device="cpu", network=network).predict(channels).labels
    alone, network.tiles = network.tiles, []
    monkeypatch.setattr(predictor_module, "FILL_VOXELS", 4 * 16**3 + 1)
    with gpu(monkeypatch):
        np.testing.assert_array_equal(
            WarmPredictor(folder, device="cuda", network=network, runtime="torch-half").predict(channels).labels,
            expected,
        )
    assert set(alone) == {1} and sum(network.tiles) == len(alone)
    assert network.tiles[:-1] == [4] * (len(network.tiles) - 1) and network.tiles[-1] <= 4


@pytest.mark.parametrize(("runtime", "halves"), [("torch", [False]), ("torch-half", [True])])
def test_only_the_runtime_for_it_computes_in_half_precision(model, monkeypatch, runtime, halves):
    """A GPU computed in half precision, or rounded like it, although nobody had compared the labels."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen = []

    def logits(network, images, *args, autocast, **kwargs):
        seen.append(autocast)
        return sliding_logits(network, images, *args, autocast=False, **kwargs)

    monkeypatch.setattr(predictor_module, "sliding_logits", logits)
    with gpu(monkeypatch):
        WarmPredictor(model, device="cuda", network=Bright(len(model.regions)), runtime=runtime).predict(
            image(1, (20, 20, 20))
        )
    assert seen == halves and not torch.backends.cudnn.allow_tf32


def test_a_gpu_that_is_too_small_for_several_tiles_computes_them_one_by_one(model, monkeypatch):
    small = SmallGpu(lambda c, s: len(small.calls) == 1, torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(predictor_module, "sliding_logits", small)
    with gpu(monkeypatch):
        WarmPredictor(model, device="cuda", runtime="torch-half").predict(image(1, (20, 20, 20)))
    assert small.at_once[0] > 1 and small.at_once[1] == 1
    assert small.calls == [("cuda", "cuda")] * 2


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 99 bytes"), id="torch"),
        pytest.param(MemoryError("Unable to allocate 3 GiB"), id="numpy"),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory"), id="gpu"),
    ],
)
def test_image_that_fits_nowhere_is_one_sentence(model, monkeypatch, error):
    monkeypatch.setattr(predictor_module, "sliding_logits", SmallGpu(lambda c, s: True, error))
    with pytest.raises(MemoryShortageError, match=r"memory.*20 x 21 x 22"):
        WarmPredictor(model, device="cpu").predict(image(1, (20, 21, 22)))


def test_other_errors_are_not_taken_for_missing_memory(model, monkeypatch):
    small = SmallGpu(lambda c, s: True, RuntimeError("shapes do not match"))
    monkeypatch.setattr(predictor_module, "sliding_logits", small)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        WarmPredictor(model, device="cpu").predict(image(1, (20, 20, 20)))


class Scaled(torch.nn.Module):
    """A network whose logits are multiplied by a factor."""

    def __init__(self, network, factor):
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x):
        return self.network(x) * self.factor


def test_logits_beyond_half_precision_are_computed_in_single(model, monkeypatch):
    """Large logits overflowed a GPU's half precision, and the whole image came back empty or infinite."""
    normal = WarmPredictor(model, device="cpu").predict(image(1, (20, 20, 20))).labels
    small = SmallGpu(lambda c, s: False, None)
    monkeypatch.setattr(predictor_module, "sliding_logits", small)
    with gpu(monkeypatch):
        predictor = WarmPredictor(model, device="cuda", runtime="torch-half")
        predictor._network = Scaled(predictor._network, 2.0**24)
        np.testing.assert_array_equal(predictor.predict(image(1, (20, 20, 20))).labels, normal)
    assert len(small.calls) == 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((7, 9, 5), (14, 18, 10)),
        ((7, 9, 5), (15, 9, 13)),
        ((14, 18, 10), (7, 9, 5)),
        ((1, 4, 3), (5, 4, 1)),
        ((40, 9, 80), (100, 18, 70)),
        ((3, 40, 8), (4, 100, 8)),
    ],
)
def test_resampling_is_linear(before, after):
    field = torch.from_numpy(np.random.default_rng(1).normal(size=(2, *before)).astype(np.float32))
    # In single precision, PyTorch rounds positions along a long axis.
    exact = torch.nn.functional.interpolate(field[None].double(), size=after, mode="trilinear", align_corners=False)
    expected = exact[0].float()
    torch.testing.assert_close(resample(field, after), expected, atol=1e-5, rtol=0)
    assert resample(field, before) is field


@pytest.mark.parametrize("after", [(20, 18, 30), (11, 12, 16), (5, 6, 9)])
@pytest.mark.parametrize("seed", range(4))
def test_positive_part_leaves_nothing_out(seed, after):
    rng = np.random.default_rng(seed)
    field = rng.normal(-3, 0.5, (10, 12, 15))
    corner = rng.integers(0, 9, 3)
    field[tuple(slice(c, c + 3) for c in corner)] += 4
    tensor = torch.from_numpy(field.astype(np.float32))
    whole = resample(tensor, after)
    values, box = resample_above(tensor, after)
    torch.testing.assert_close(values, whole[box])
    rest = whole.clone()
    rest[box] = -1
    assert not (rest > 0).any()
    assert values.numel() < whole.numel()


def test_positive_part_on_the_same_grid_is_cut_out():
    field = torch.full((4, 5, 6), -1.0)
    field[1, 2, 3] = 1
    values, box = resample_above(field, (4, 5, 6))
    torch.testing.assert_close(values, field[box])
    assert values.max() == 1
    assert values.numel() <= 8
    assert resample_above(-field - 1, (4, 5, 6)) is None


def test_box_above_a_threshold_leaves_nothing_above_it_out():
    field = torch.from_numpy(np.random.default_rng(2).normal(-9, 1, (9, 8, 7)).astype(np.float32))
    field[2:4, 3:5, 1:3] = 4
    whole = resample(field, (18, 20, 15))
    values, box = resample_above(field, (18, 20, 15), threshold=-5.0)
    torch.testing.assert_close(values, whole[box])
    rest = whole.clone()
    rest[box] = -99
    assert not (rest > -5).any()
    assert values.numel() < whole.numel() / 4


def test_resampling_keeps_its_input():
    field = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 6, 5, 4)).astype(np.float32))
    before = field.clone()
    resample(field, (9, 3, 4))
    resample_above(field[0], (9, 3, 4))
    assert torch.equal(field, before)


@pytest.mark.parametrize(("before", "after"), [((12, 16, 20), (30, 40, 25)), ((12, 16, 20), (12, 8, 20))])
def test_part_of_a_grid_is_resampled_as_in_the_whole(before, after):
    """The box was resampled as if it were an image of its own, which moved its voxels by up to half of one."""
    field = torch.from_numpy(np.random.default_rng(0).normal(size=before).astype(np.float32))
    part = (slice(3, 9), slice(0, 16), slice(8, 16))
    values, box = resample_above(field[part], after, -9.0, within=(part, before))
    assert box == tuple(scaled(axis, *sizes) for axis, *sizes in zip(part, before, after, strict=True))
    inner = tuple(slice(3, -3) for _ in range(3))
    torch.testing.assert_close(values[inner], resample(field, after)[box][inner])


def test_positive_part_of_nothing():
    assert resample_above(torch.full((4, 4, 4), -1.0), (8, 8, 8)) is None


def test_nan_from_the_network_is_an_error(model):
    predictor = WarmPredictor(model, device="cpu")
    predictor._network = Scaled(predictor._network, float("nan"))
    with pytest.raises(WeightsError, match="NaN"):
        predictor.predict(image(1, (20, 20, 20)))


def test_smaller_tile_steps_mean_more_tiles():
    assert tile_starts(110, 64, 0.5) == [0, 23, 46]
    assert tile_starts(64, 64, 0.5) == [0]
    assert tile_starts(128, 64, 1.0) == [0, 64]
    assert len(tile_starts(500, 64, 0.25)) > len(tile_starts(500, 64, 0.5)) > len(tile_starts(500, 64, 1.0))


@pytest.mark.parametrize("step", [0.5, 0.75, 1.0])
def test_tiles_stand_where_nnunet_puts_them(step):
    for length in range(16, 90):
        assert [tile_starts(length, 16, step)] == compute_steps_for_sliding_window((length,), (16,), step)


def test_gaussian_weights_are_positive_and_highest_in_the_middle():
    weights = gaussian_weights((16, 24, 8))
    assert weights[8, 12, 4] == weights.max() == 10
    assert weights.min() > 0


def test_masked_normalization_leaves_the_outside_alone():
    from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization

    channels = image(1, (12, 12, 12))
    channels[0, 5:8, 5:8, 5:7] = 0
    mask = np.where(create_nonzero_mask(channels), 0, -1)
    expected = ZScoreNormalization(True, {}).run(channels[0].copy(), mask)
    result = normalize(torch.from_numpy(channels), ["ZScoreNormalization"], [True]).numpy()
    np.testing.assert_allclose(result[0], expected, atol=1e-6)
    assert (result[0][mask < 0] == 0).all()
