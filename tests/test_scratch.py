"""Tests of training from scratch with nnU-Net's own programs on tiny cases, killed and continued."""

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from test_raw_dataset import block_scan
from totalspineseg_server.anatomy import LUMBAR, UNREVIEWED
from totalspineseg_server.cli import main
from totalspineseg_server.errors import StorageError, TrainingError
from totalspineseg_server.nnunet.augmentation import FirstChannelTransform
from totalspineseg_server.nnunet.cases import Origin, ScanSource
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.plugin.spine_trainer import with_scanners
from totalspineseg_server.nnunet.raw_dataset import RawOptions, split_by_subject, subjects_of, write_raw_datasets
from totalspineseg_server.nnunet.raw_folder import NnunetFolders
from totalspineseg_server.nnunet.targets import IGNORE_CLASS, REGIONS, step_target
from totalspineseg_server.nnunet.training_log import TrainingLog
from totalspineseg_server.registry.model_store import ModelStore, dataset_name
from totalspineseg_server.training import scratch
from totalspineseg_server.training.runs import only_one
from totalspineseg_server.training.scratch import PLANNED_FILE, SETTINGS_FILE, ScratchSettings, train_from_scratch

TINY = ScratchSettings(epochs=2, iterations=1, device="cpu", workers=0)


def write_cases(base: Path, count: int, steps: tuple[Any, ...] = (1,)) -> NnunetFolders:
    folders = NnunetFolders.at(base)
    sources = [ScanSource(str(k), Origin.EARLIER, lambda k=k: block_scan(k)) for k in range(count)]  # type: ignore[misc]
    write_raw_datasets(sources, folders.raw, RawOptions(steps), on_skip=pytest.fail)
    return folders


class Killing(subprocess.Popen):  # type: ignore[type-arg]
    """Remembers the last program that was started."""

    last: "Killing"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Killing.last = self


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_training_goes_on_and_gives_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Planning, preprocessing and training are nnU-Net's own; an interruption costs the epochs since the last state."""
    folders = write_cases(tmp_path, 5)
    monkeypatch.setattr(scratch.subprocess, "Popen", Killing)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "nnunet_threads"))

    def kill(line: str) -> None:
        if "epoch 1 of 2" in line:
            os.kill(Killing.last.pid, signal.SIGKILL)

    with pytest.raises(TrainingError, match=r"exit code -9"):
        train_from_scratch(folders, 1, "0", TINY, tell=kill)
    words = ["train", "101", "0", "--nnunet", str(tmp_path), "--device", "cpu", "--workers", "0", "--iterations", "1"]
    assert main([*words, "--epochs", "3"]) == 2
    assert "--restart" in capsys.readouterr().err
    assert main([*words, "--epochs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "after epoch 1 of 2" in printed
    assert "planning" not in printed
    (model,) = (folders.results / dataset_name(1)).iterdir()
    events = TrainingLog(model / "fold_0").events()
    assert [event["iteration"] for event in events if "dice" in event] == [1, 2]
    assert list(events[0]["dice"]) == list(REGIONS[1])
    assert (model / "fold_0" / "curves.png").is_file()
    assert json.loads((model / "fold_0" / "validation" / "summary.json").read_text(encoding="utf-8"))["foreground_mean"]
    opened = ModelFolder.open(model, step=1)
    opened.load_network()
    assert opened.spacing_mm == (1, 1, 1)
    assert opened.configuration["architecture"]["network_class_name"].endswith("ResidualEncoderUNet")
    assert main([*words, "--epochs", "2"]) == 0
    assert "already trained" in capsys.readouterr().out
    store = ModelStore(tmp_path / "model")
    assert main(["models", "import", str(folders.results), "--name", "ours", "--data-dir", str(store.model_dir)]) == 0
    imported = ModelFolder.open(store.versions_dir / "ours", step=1)
    stock = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    stock.initialize_from_trained_model_folder(str(imported.path), use_folds=(0,))
    weights = opened.load_network().state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in stock.network.state_dict().items())
    more = write_cases(tmp_path, 6)
    with pytest.raises(TrainingError, match=r"/fold_0 .*(?i:remove)"):
        train_from_scratch(more, 1, "1", TINY)


# --- what nnU-Net is asked for


class Asked:
    """Replaces nnU-Net's programs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, list[str], dict[str, str]]] = []
        monkeypatch.setattr(scratch._Scratch, "_run", lambda run, *call: self._note(run, *call))

    def _note(self, run: Any, module: str, words: Sequence[str], variables: dict[str, str]) -> None:
        self.calls.append((module.rpartition(".")[2], list(words), variables))


def test_the_plan_is_the_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    folders = write_cases(tmp_path, 5, (2,))
    settings = ScratchSettings(device="cpu")
    for fold in ("0", "all"):
        train_from_scratch(folders, 2, fold, settings)
    (plan, words, _), (train, first, variables), (_, second, _) = asked.calls
    assert (plan, train) == ("plan_and_preprocess_entrypoints", "run_training")
    assert words[:6] == ["-d", "102", "-pl", "nnUNetPlannerResEncL", "-c", "3d_fullres"]
    assert first[:5] == ["102", "3d_fullres", "0", "-p", "nnUNetResEncUNetLPlans"]
    assert second[2] == "all"
    assert "--c" not in first
    assert "-num_gpus" not in first
    assert variables == {"TOTALSPINESEG_EPOCHS": "1000", "TOTALSPINESEG_ITERATIONS": "250"}


def test_several_gpus_are_nnunets_own_affair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asked = Asked(monkeypatch)
    folders = write_cases(tmp_path, 5)
    train_from_scratch(folders, 1, "0", ScratchSettings(gpus=2))
    words = asked.calls[1][1]
    assert words[words.index("-num_gpus") + 1] == "2"
    assert words[words.index("-device") + 1] == "cuda"
    with pytest.raises(TrainingError, match="--gpus"):
        train_from_scratch(folders, 1, "0", ScratchSettings(gpus=3))


def test_another_size_is_planned_without_preprocessing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    folders = write_cases(tmp_path, 5)
    for size in ("L", "M", "L"):
        train_from_scratch(folders, 1, "0", ScratchSettings(size=size, device="cpu"))
    plans = [words for module, words, _ in asked.calls if module.startswith("plan")]
    assert [words[3] for words in plans] == ["nnUNetPlannerResEncL", "nnUNetPlannerResEncM"]
    assert ["--no_pp" in words for words in plans] == [False, True]


def test_continuing_and_starting_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    folders = write_cases(tmp_path, 5)
    train_from_scratch(folders, 1, "0", TINY)
    fold = scratch._Scratch(folders, 1, "0", TINY, print).folder
    (fold / "checkpoint_latest.pth").touch()
    train_from_scratch(folders, 1, "0", TINY)
    with pytest.raises(TrainingError, match=r"epochs 2.*epochs 3"):
        train_from_scratch(folders, 1, "0", replace(TINY, epochs=3))
    train_from_scratch(folders, 1, "0", replace(TINY, epochs=3), restart=True)
    assert not (fold / "checkpoint_latest.pth").exists()
    assert kinds(asked) == ["plan", "begin", "continue", "plan", "begin"]


@pytest.mark.parametrize(
    ("damaged", "remedy"), [("preprocessed", "plan again"), ("fold_0", "--restart")], ids=["plan", "settings"]
)
def test_a_damaged_note_of_a_training_is_no_license_to_change_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str, remedy: str
) -> None:
    """A plan that other folds used was made again, and a training went on with another number of epochs."""
    asked = Asked(monkeypatch)
    folders = write_cases(tmp_path, 5)
    train_from_scratch(folders, 1, "0", TINY)
    run = scratch._Scratch(folders, 1, "0", TINY, print)
    (run.folder / "checkpoint_latest.pth").touch()
    note = run.preprocessed / PLANNED_FILE if damaged == "preprocessed" else run.folder / SETTINGS_FILE
    note.write_text("{", encoding="utf-8")
    with pytest.raises(StorageError, match=f"{note.name}.*{remedy}"):
        train_from_scratch(folders, 1, "0", replace(TINY, epochs=3))
    assert (kinds(asked), note.read_text(encoding="utf-8")) == (["plan", "begin"], "{")


def kinds(asked: Asked) -> list[str]:
    return [("plan" if "-pl" in words else "continue" if "--c" in words else "begin") for _, words, _ in asked.calls]


def test_a_fold_that_starts_over_leaves_the_others_their_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart of one fold made a new plan while the others were using the old one, and forgot which cases they
    had."""
    asked = Asked(monkeypatch)
    folders = write_cases(tmp_path, 5)
    states = [scratch._Scratch(folders, 1, fold, TINY, print).folder / "checkpoint_latest.pth" for fold in "01"]
    for fold, state in zip("01", states, strict=True):
        train_from_scratch(folders, 1, fold, TINY)
        state.touch()
    train_from_scratch(folders, 1, "0", TINY, restart=True)
    assert not states[0].exists()
    train_from_scratch(folders, 1, "1", TINY)
    assert kinds(asked) == ["plan", "begin", "begin", "begin", "continue"]
    states[0].touch()
    write_cases(tmp_path, 6)
    for fold in "02":
        with pytest.raises(TrainingError, match=r"/fold_1 .*(?i:remove)"):
            train_from_scratch(folders, 1, fold, TINY, restart=True)
    assert states[0].exists()
    states[1].unlink()
    train_from_scratch(folders, 1, "0", TINY, restart=True)
    assert kinds(asked)[5:] == ["plan", "begin"]


def test_a_training_without_a_state_yet_keeps_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first epochs there is no checkpoint that shows that another fold is in training."""
    asked = Asked(monkeypatch)
    folders = write_cases(tmp_path, 5)
    for fold in "01":
        train_from_scratch(folders, 1, fold, TINY)
    with only_one(scratch._Scratch(folders, 1, "1", TINY, print).folder):
        train_from_scratch(folders, 1, "0", TINY, restart=True)
    assert kinds(asked) == ["plan", "begin", "begin", "begin"]
    train_from_scratch(folders, 1, "0", TINY, restart=True)
    assert kinds(asked)[4:] == ["plan", "begin"]


def test_an_interrupted_plan_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After cases were added and removed again, half a plan for other cases counted as the plan for these."""
    asked = Asked(monkeypatch)
    folders = write_cases(tmp_path, 5)
    train_from_scratch(folders, 1, "0", TINY)
    write_cases(tmp_path, 6)
    with monkeypatch.context() as patch:
        patch.setattr(scratch, "write_splits", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_from_scratch(folders, 1, "0", TINY)
    write_cases(tmp_path, 5)
    train_from_scratch(folders, 1, "0", TINY)
    assert kinds(asked) == ["plan", "begin", "plan", "plan", "begin"]


def test_a_training_from_scratch_is_as_long_as_its_page_says() -> None:
    page = (Path(__file__).parents[1] / "docs" / "from-scratch.md").read_text(encoding="utf-8")
    settings = ScratchSettings()
    assert f"default {settings.epochs} and {settings.iterations}" in page


def test_cases_that_change_while_they_are_planned_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = write_cases(tmp_path, 5)
    monkeypatch.setattr(scratch._Scratch, "_run", lambda *_: write_cases(tmp_path, 6))
    with pytest.raises(TrainingError, match="Train again"):
        train_from_scratch(folders, 1, "0", TINY)


def test_half_a_dataset_is_not_used_for_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    folders = write_cases(tmp_path, 5)
    (folders.raw / dataset_name(1) / "dataset.json").unlink()
    with pytest.raises(TrainingError, match=r"'dataset.json'.*totalspineseg prepare"):
        train_from_scratch(folders, 1, "0", TINY)
    assert asked.calls == []


@pytest.mark.parametrize(
    ("cases", "fold", "settings", "message"),
    [
        (0, "0", TINY, "totalspineseg prepare"),
        (4, "0", TINY, "5 subjects.*4"),
        (5, "0", ScratchSettings(device="cuda"), "CUDA GPU"),
        (5, "0", ScratchSettings(device="cpu", gpus=2), "2 GPUs"),
    ],
    ids=["no cases", "too few subjects", "no GPU", "too few GPUs"],
)
def test_what_cannot_work_is_reported_at_once(
    tmp_path: Path, cases: int, fold: str, settings: ScratchSettings, message: str
) -> None:
    folders = write_cases(tmp_path, cases)
    with pytest.raises(TrainingError, match=message):
        train_from_scratch(folders, 1, fold, settings)


def test_two_trainings_of_one_fold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Asked(monkeypatch)
    folders = write_cases(tmp_path, 5)
    run = scratch._Scratch(folders, 1, "0", TINY, print)
    with only_one(run.folder), pytest.raises(TrainingError, match="already running"):
        train_from_scratch(folders, 1, "0", TINY)
    train_from_scratch(folders, 1, "0", TINY)


def test_the_reason_that_nnunet_printed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = write_cases(tmp_path, 5)
    monkeypatch.setattr(scratch, "PLAN_MODULE", "this_module_is_not_there")
    with pytest.raises(TrainingError, match=r"this_module_is_not_there.*nnunet\.txt"):
        train_from_scratch(folders, 1, "0", TINY)


def test_folders_follow_nnunets_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "elsewhere"))
    monkeypatch.delenv("nnUNet_results", raising=False)
    monkeypatch.chdir(tmp_path)
    found = NnunetFolders.at()
    assert (found.raw, found.results) == (tmp_path / "elsewhere", tmp_path / "nnUNet" / "results")
    assert NnunetFolders.at(tmp_path / "x").raw == tmp_path / "x" / "raw"


# --- folds


def test_folds_keep_subjects_apart(tmp_path: Path) -> None:
    """nnU-Net's own folds put one variant of a case into training and the other into validation."""
    write_cases(tmp_path, 6, (2,))
    subjects = subjects_of(tmp_path / "raw" / dataset_name(2))
    assert len(subjects) == 12
    folds = split_by_subject(subjects)
    assert len(folds) == 5
    for fold in folds:
        train, val = ({subjects[case] for case in fold[side]} for side in ("train", "val"))
        assert val
        assert not train & val
        assert len(fold["train"]) + len(fold["val"]) == 12
    assert sorted(case for fold in folds for case in fold["val"]) == sorted(subjects)


def test_subjects_are_known_without_our_note(tmp_path: Path) -> None:
    dataset = tmp_path / "labelsTr"
    dataset.mkdir()
    for name in ("sub-7_T1w", "sub-7_T2w_o2e", "scan12"):
        (dataset / f"{name}.nii.gz").touch()
    assert subjects_of(tmp_path) == {"scan12": "scan12", "sub-7_T1w": "sub-7", "sub-7_T2w_o2e": "sub-7"}


# --- the trainer


@pytest.mark.parametrize("step", [1, 2])
def test_gray_values_change_in_the_image_alone(step: int) -> None:
    """Noise and gamma on the marks of odd discs teach a channel that does not occur at inference."""
    regions = [tuple(classes) for classes in REGIONS[step].values()]
    stock = nnUNetTrainer.get_training_transforms(
        (8, 8, 8), (0, 0), None, (2,), False, use_mask_for_norm=[False, False], regions=regions, ignore_label=12
    )
    chain = with_scanners(stock.transforms, len(regions))
    assert chain[0] is stock.transforms[0]
    assert len(chain) == len(stock.transforms) + 6
    marks = (torch.rand(1, 8, 8, 8) > 0.5).float()
    data = {"image": torch.cat([torch.rand(1, 8, 8, 8), marks]), "segmentation": torch.ones(1, 8, 8, 8).short()}
    data["segmentation"][0, 0] = -1
    changed = 0
    for transform in chain:
        if isinstance(transform, FirstChannelTransform):
            transform.transform.apply_probability = 1
            varied = transform(**{name: value.clone() for name, value in data.items()})["image"]
            assert torch.equal(varied[1:], marks)
            changed += not torch.equal(varied[:1], data["image"][:1])
    assert changed >= 10


@pytest.mark.parametrize("step", [1, 2])
def test_nnunets_loss_ignores_what_nobody_reviewed(step: Any) -> None:
    """The ignore label in the datasets is of use only if the trainer's loss respects it."""
    codes = np.zeros((1, 8, 8, 8), np.uint8)
    codes[0, :4] = LUMBAR[4]
    codes[0, 6:] = UNREVIEWED
    target = torch.from_numpy(step_target(codes, step)).short()
    regions = [*REGIONS[step].values(), IGNORE_CLASS[step]]
    convert = ConvertSegmentationToRegionsTransform(regions=regions, channel_in_seg=0)
    truth = convert(segmentation=target)["segmentation"][None]
    options = {"batch_dice": True, "do_bg": True, "smooth": 1e-5, "ddp": False}
    loss = DC_and_BCE_loss({}, options, use_ignore_label=True, dice_class=MemoryEfficientSoftDiceLoss)
    logits = torch.randn(1, len(REGIONS[step]), 8, 8, 8)
    other = logits.clone()
    other[:, :, 6:] = -other[:, :, 6:] * 5
    wrong = logits.clone()
    wrong[:, :, :2] = -wrong[:, :, :2] * 5
    assert torch.allclose(loss(logits, truth), loss(other, truth))
    assert not torch.allclose(loss(logits, truth), loss(wrong, truth))
