"""Tests of model folders: found in every layout, refused if invalid, and loaded without running code."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiny_models import TRAINER, checkpoint_dict, plans_json, write_model_folder, write_models
from totalspineseg_server.errors import WeightsError
from totalspineseg_server.nnunet.checkpoint import load_checkpoint
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.predictor import WarmPredictor


class Payload:
    """Is pickled as a call that leaves a trace."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("arch", ["plain", "resenc"])
@pytest.mark.parametrize("nested", [True, False], ids=["official-layout", "flat"])
def test_opens_and_loads_without_the_trainer_class(tmp_path, step, arch, nested):
    """nnU-Net has no class with the name in the official checkpoints, and cannot load them."""
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

    assert not hasattr(nnUNetTrainer, TRAINER)
    path = write_model_folder(tmp_path / "m", step, arch=arch, nested=nested)
    folder = ModelFolder.open(tmp_path / "m", name="official-r20251124")
    assert (folder.path, folder.step) == (path, step)
    assert folder.patch == (16, 16, 16)
    assert folder.spacing_mm == (1, 1, 1)
    assert folder.version == f"official-r20251124-{folder.digest[:8]}"
    network = folder.load_network()
    assert not network.training
    with torch.inference_mode():
        logits = network(torch.zeros(1, step, 16, 16, 16))
    assert logits.shape == (1, len(folder.regions), 16, 16, 16)


def test_both_steps_below_one_folder(tmp_path):
    write_models(tmp_path)
    assert [ModelFolder.open(tmp_path, step=step).step for step in (1, 2)] == [1, 2]
    with pytest.raises(WeightsError, match="several model folders"):
        ModelFolder.open(tmp_path)


def test_half_precision_weights_become_float32(tmp_path):
    write_model_folder(tmp_path / "half", 1, dtype=torch.float16, arch="plain")
    write_model_folder(tmp_path / "full", 1, arch="plain")
    half = ModelFolder.open(tmp_path / "half").load_network().state_dict()
    full = ModelFolder.open(tmp_path / "full").load_network().state_dict()
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert all(torch.allclose(half[name], full[name], atol=1e-3) for name in full)


def test_prefers_final_and_fold_0(tmp_path):
    path = write_model_folder(tmp_path, 1, nested=False, checkpoint="checkpoint_best.pth")
    assert ModelFolder.open(path).checkpoint.name == "checkpoint_best.pth"
    for fold in ("fold_1", "fold_all"):
        (path / fold).mkdir()
        (path / fold / "checkpoint_final.pth").write_bytes(b"")
    assert ModelFolder.open(path).checkpoint == path / "fold_0" / "checkpoint_best.pth"
    (path / "fold_0" / "checkpoint_final.pth").write_bytes(b"")
    assert ModelFolder.open(path).checkpoint == path / "fold_0" / "checkpoint_final.pth"


def test_the_version_distinguishes_weights(tmp_path):
    write_model_folder(tmp_path / "a", 1, seed=1)
    write_model_folder(tmp_path / "b", 1, seed=2)
    write_model_folder(tmp_path / "c", 1, seed=1, patch=(32, 16, 16))
    assert len({ModelFolder.open(tmp_path / name).digest for name in "abc"}) == 3


def test_other_region_names_are_no_obstacle(tmp_path):
    """Names are for people; the classes of a channel say what it means."""
    path = write_model_folder(tmp_path, 1)
    edit(path / "dataset.json", lambda d: d.update(labels={f"{name}_new": v for name, v in d["labels"].items()}))
    edit(path / "dataset.json", lambda d: d["labels"].update(background=d["labels"].pop("background_new")))
    assert "cord" in ModelFolder.open(tmp_path, step=1).regions


def test_configuration_that_builds_on_another_is_resolved(tmp_path):
    plain = ModelFolder.open(write_model_folder(tmp_path / "plain", 1))
    path = write_model_folder(tmp_path / "heir", 1)

    def inherit(plans: dict[str, Any]) -> None:
        plans["configurations"]["base"] = plans["configurations"]["3d_fullres"]
        plans["configurations"]["3d_fullres"] = {"inherits_from": "base", "batch_size": 7}

    edit(path / "plans.json", inherit)
    heir = ModelFolder.open(path)
    assert heir.configuration["batch_size"] == 7
    assert (heir.patch, heir.spacing_mm) == (plain.patch, plain.spacing_mm)
    assert heir.configuration["architecture"] == plain.configuration["architecture"]
    heir.load_network()


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def reorder(dataset: dict[str, Any]) -> None:
    labels = dataset["labels"]
    dataset["labels"] = {name: labels[name] for name in ("background", *sorted(set(labels) - {"background"}))}


def plan(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda plans: plans["configurations"]["3d_fullres"].update({key: value})


def architecture(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda plans: plans["configurations"]["3d_fullres"]["architecture"].update({key: value})


def kwarg(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda plans: plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update({key: value})


@pytest.mark.parametrize(
    ("file", "change", "match"),
    [
        pytest.param("dataset.json", reorder, "model folder of step 1", id="regions-in-another-order"),
        pytest.param("dataset.json", lambda d: d["labels"].pop("cord"), "model folder of step 1", id="region-missing"),
        pytest.param("dataset.json", lambda d: d.update(channel_names={"0": "a", "1": "b"}), "step 1", id="channels"),
        pytest.param("dataset.json", lambda d: d.update(labels={"background": 0, "a": 1}), "step 1", id="plain-labels"),
        pytest.param(
            "dataset.json", lambda d: d.update(regions_class_order=[1, 2]), "regions_class_order", id="class-order"
        ),
        pytest.param("dataset.json", lambda d: d.pop("regions_class_order"), "nnU-Net 2", id="no-class-order"),
        pytest.param("plans.json", lambda d: d.pop("configurations"), "nnU-Net 2", id="no-configurations"),
        pytest.param("plans.json", architecture("network_class_name", "os.system"), "os.system", id="foreign-class"),
        pytest.param("plans.json", kwarg("conv_op", "os.system"), "os.system", id="foreign-building-block"),
        pytest.param(
            "plans.json", kwarg("nonlin", "torch.nn.modules.module.torch.hub.load"), "hub", id="detour-to-other-code"
        ),
        pytest.param("plans.json", plan("normalization_schemes", ["CTNormalization"]), "CTNorm", id="normalization"),
        pytest.param("plans.json", plan("patch_size", [16, 16]), "patch", id="two-dimensional"),
        pytest.param("plans.json", plan("previous_stage", "3d_lowres"), "cascade", id="cascade"),
        pytest.param("plans.json", lambda d: d.update(transpose_forward=[0, 0, 1]), "axis order", id="axes"),
    ],
)
def test_refuses_another_kind_of_model(tmp_path, file, change, match):
    path = write_model_folder(tmp_path, 1)
    edit(path / file, change)
    with pytest.raises(WeightsError, match=match):
        ModelFolder.open(tmp_path, step=1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(plan("spacing", [2, 1, 1]), r"\(spacing \[1, 1, 1\]\)", id="spacing"),
        pytest.param(plan("normalization_schemes", ["NoNormalization"]), "ZScoreNormalization", id="normalization"),
        pytest.param(plan("use_mask_for_norm", [True]), r"use_mask_for_norm \[False\]", id="mask"),
        pytest.param(lambda d: d.update(transpose_forward=[1, 0, 2]), r"transpose_forward \[0, 1, 2\]", id="axes"),
        pytest.param(None, r"labels \[\(2,\), ", id="regions"),
    ],
)
def test_refuses_the_files_of_another_training(tmp_path, change, match):
    """Weights beside the plans of another training ran at a wrong spacing, and gave a poor result without a word."""
    path = write_model_folder(tmp_path, 1)
    if change is not None:
        edit(path / "plans.json", change)
    else:
        content = torch.load(path / "fold_0" / "checkpoint_final.pth", weights_only=False)
        labels = content["init_args"]["dataset_json"]["labels"]
        content["init_args"]["dataset_json"]["labels"] = {"disc_C2_C3": labels.pop("disc_C2_C3"), **labels}
        torch.save(content, path / "fold_0" / "checkpoint_final.pth")
    model = ModelFolder.open(tmp_path, step=1)
    with pytest.raises(WeightsError, match=f"trained with .*{match}"):
        model.load_network()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"], ids=["empty", "cut", "list", "binary"])
@pytest.mark.parametrize("file", ["plans.json", "dataset.json"])
def test_refuses_damaged_json(tmp_path, file, content):
    path = write_model_folder(tmp_path, 1)
    (path / file).write_bytes(content)
    with pytest.raises(WeightsError, match=file):
        ModelFolder.open(tmp_path)


def test_refuses_a_missing_folder_step_or_checkpoint(tmp_path):
    with pytest.raises(WeightsError, match="weights install"):
        ModelFolder.open(tmp_path / "none")
    path = write_model_folder(tmp_path, 1)
    with pytest.raises(WeightsError, match="model folder of step 2"):
        ModelFolder.open(tmp_path, step=2)
    (path / "fold_0" / "checkpoint_final.pth").unlink()
    with pytest.raises(WeightsError, match=r"fold_0/checkpoint_final\.pth"):
        ModelFolder.open(tmp_path)


def test_never_runs_code_from_a_checkpoint(tmp_path):
    path = write_model_folder(tmp_path, 1)
    trace = tmp_path / "trace"
    torch.save({"network_weights": {}, "logging": Payload(trace)}, path / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(WeightsError, match="other code"):
        ModelFolder.open(tmp_path).load_network()
    assert not trace.exists()
    (path / "fold_0" / "checkpoint_final.pth").write_bytes(pickle.dumps(Payload(trace), protocol=2))
    with pytest.raises(WeightsError):
        ModelFolder.open(tmp_path).load_network()
    assert not trace.exists()


def test_reads_the_numpy_scalars_of_the_training_log(tmp_path):
    plans = plans_json(1)
    content = checkpoint_dict(1, plans, 0) | {"_best_ema": np.float64(0.75)}
    torch.save(content, tmp_path / "c.pth")
    assert load_checkpoint(tmp_path / "c.pth")["_best_ema"] == 0.75
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_checkpoint(tmp_path / "old.pth")["_best_ema"] == 0.75


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3000])


def save(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def other_features(path: Path) -> None:
    torch.save(checkpoint_dict(1, plans_json(1, features=(4, 6)), 0), path)


def not_finite(path: Path) -> None:
    content = checkpoint_dict(1, plans_json(1), 0)
    next(iter(content["network_weights"].values()))[0] = float("nan")
    torch.save(content, path)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        pytest.param(cut, "cannot be read", id="cut-short"),
        pytest.param(lambda path: path.write_bytes(b""), "checkpoint", id="empty"),
        pytest.param(lambda path: path.write_bytes(b"<html>not found</html>"), "checkpoint", id="web-page"),
        pytest.param(save({"state_dict": {}}), "no 'network_weights'", id="not-nnunet"),
        pytest.param(save([1]), "no 'network_weights'", id="list"),
        pytest.param(save({"network_weights": {"a": 1}}), "tensor.*Install", id="not-tensors"),
        pytest.param(other_features, "not fit the plans", id="other-plans"),
        pytest.param(not_finite, "NaN", id="nan"),
    ],
)
def test_refuses_a_damaged_checkpoint(tmp_path, damage, match):
    path = write_model_folder(tmp_path, 1)
    damage(path / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(WeightsError, match=match):
        ModelFolder.open(tmp_path).load_network()


def test_nothing_is_printed(tmp_path, capfd):
    """nnU-Net prints while it loads and predicts, which would disturb a command line that writes to stdout."""
    write_model_folder(tmp_path, 1, arch="plain")
    WarmPredictor(ModelFolder.open(tmp_path), device="cpu").predict(np.ones((1, 8, 8, 8), np.float32))
    assert capfd.readouterr() == ("", "")


def test_best_checkpoint_of_the_totalspineseg_trainer(tmp_path):
    """A lab's training folder has a best and a final checkpoint; TotalSpineSeg uses the best, but we used the final
    one."""
    for trainer, used in ((TRAINER, "checkpoint_best.pth"), ("nnUNetTrainer", "checkpoint_final.pth")):
        path = write_model_folder(tmp_path / trainer, 1, trainer=trainer)
        shutil.copy(path / "fold_0" / "checkpoint_final.pth", path / "fold_0" / "checkpoint_best.pth")
        assert ModelFolder.open(path).checkpoint.name == used


SCORES = [np.float64(0.5), np.float32(0.25), np.float16(2), np.int64(-3), np.bool_(True)]
ARRAYS = [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)), np.zeros((0, 2))]


def test_numbers_and_arrays_of_numpy_are_read(tmp_path):
    """Checkpoints of label-based nnU-Net have arrays in their log, and were refused as unsafe."""
    path = write_model_folder(tmp_path, 1)
    file = path / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False) | {"logging": {"scores": SCORES, "arrays": ARRAYS}}
    torch.save(content, file)
    ModelFolder.open(path).load_network()
    logged = load_checkpoint(file)["logging"]
    assert [(value, value.dtype) for value in logged["scores"]] == [(value, value.dtype) for value in SCORES]
    for value, wanted in zip(logged["arrays"], ARRAYS, strict=True):
        np.testing.assert_array_equal(value, wanted, strict=True)
    torch.save({"logging": logged}, file)
    again = torch.load(file, weights_only=False)["logging"]["arrays"]
    assert {type(value) for value in again} == {np.ndarray}, "what is written is plain numpy again"


class Crafted:
    """Is pickled as a call of the attacker's choice."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


RECONSTRUCT = np.zeros(1).__reduce__()[0]
NUMBER, (NUMBER_DTYPE, _) = np.float64(1).__reduce__()
DTYPE_FLAGS = Crafted(np.dtype, ("f8", False, True), (3, "<", None, None, None, -1, -1, 63))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(np.array([object()]), id="objects"),
        pytest.param(np.zeros(2, [("a", "f8")]), id="fields"),
        pytest.param(np.array(["2020-01-01"], dtype="datetime64"), id="dates"),
        pytest.param(DTYPE_FLAGS, id="a-number-flagged-as-a-pointer"),
        pytest.param(Crafted(NUMBER, (NUMBER_DTYPE, b"abc")), id="too-few-bytes"),
        pytest.param(Crafted(RECONSTRUCT, (np.ndarray, (1 << 40,), b"b")), id="huge"),
        pytest.param(
            Crafted(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (9,), NUMBER_DTYPE, False, b"12345678")), id="short"
        ),
        pytest.param(Crafted(np.dtype, (["f8"],)), id="no-data-type"),
        pytest.param(Crafted(bytes, (1 << 40,)), id="memory"),
    ],
)
def test_crafted_values_of_numpy_are_refused(tmp_path, value):
    """A state from the file went into numpy's types without a check; its flags could turn a number into a pointer."""
    path = write_model_folder(tmp_path, 1)
    file = path / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(file, weights_only=False) | {"logging": value}, file)
    with pytest.raises(WeightsError, match=r"checkpoint"):
        load_checkpoint(file)
