"""The warm predictor against nnU-Net's own inference, and its behavior at the edges."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from lib.nnunet.model_folder import ModelFolder
from lib.nnunet.predictor import WarmPredictor
from tiny_models import write_model_folder

CASES = [
    pytest.param(1, {"arch": "resenc"}, (21, 30, 40), id="step1-resenc"),
    pytest.param(2, {"arch": "resenc"}, (19, 24, 37), id="step2-resenc"),
    pytest.param(1, {"arch": "plain", "patch": (16, 24, 16)}, (17, 33, 20), id="step1-plain-other-patch"),
    pytest.param(1, {"arch": "plain"}, (9, 12, 25), id="smaller-than-the-patch"),
    pytest.param(1, {"arch": "plain", "spacing": (2, 2, 2)}, (40, 38, 44), id="coarse-plans"),
    pytest.param(2, {"arch": "plain", "spacing": (2, 1.5, 2.5)}, (40, 31, 44), id="coarse-uneven-plans"),
]


def image(step: int, shape: tuple[int, int, int], seed: int = 3) -> np.ndarray:
    """Smooth noise with an empty margin on two sides, and odd discs for step 2."""
    rng = np.random.default_rng(seed)
    channels = rng.normal(200, 60, (step, *shape)).astype(np.float32)
    if step == 2:
        channels[1] = channels[1] > 250
    channels[:, :2] = 0
    channels[:, :, :, -3:] = 0
    return channels


def nnunet_answer(folder: Path, channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of nnU-Net's own predictor, in (X, Y, Z)."""
    reference = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    reference.initialize_from_trained_model_folder(str(folder), (0,))
    turned = np.ascontiguousarray(channels.transpose(0, 3, 2, 1))
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
    coarse = "spacing" in options
    # Resampled logits differ in the last bits, so voxels with a logit of 0 may fall to either side.
    assert np.mean(prediction.labels != labels) <= (2e-4 if coarse else 0)
    for index, name in enumerate(model.regions):
        np.testing.assert_allclose(prediction.soft[name], soft[index], atol=2e-3)
    np.testing.assert_array_equal(channels, before)


def test_only_the_asked_probabilities_are_given(tmp_path):
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


def test_axis_order_of_the_plans_is_undone(tmp_path):
    """A model planned with transposed axes returned its labels turned."""
    import json

    folder = write_model_folder(tmp_path, 1, patch=(16, 24, 32), trainer="nnUNetTrainer", seed=5)
    plans = json.loads((folder / "plans.json").read_text())
    plans |= {"transpose_forward": [1, 2, 0], "transpose_backward": [2, 0, 1]}
    (folder / "plans.json").write_text(json.dumps(plans))
    channels = image(1, (21, 30, 40))
    labels, _ = nnunet_answer(folder, channels)
    np.testing.assert_array_equal(
        WarmPredictor(ModelFolder.open(tmp_path), device="cpu").predict(channels).labels, labels
    )
