"""Tests of the tool that fine-tunes the starter weights on patients."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import mix_starter
import tune_starter
from bench_retrain_real import TRAINED_ON
from spider_cases import read_patients

from test_spider_cases import slab
from totalspineseg_server.anatomy import CORD, DISC_T12_L1, UNREVIEWED
from totalspineseg_server.files import read_json, sha256_of
from totalspineseg_server.nnunet.checkpoint import float32_weights, load_checkpoint
from totalspineseg_server.nnunet.finetune import Finetuned
from totalspineseg_server.nnunet.finetune_settings import FinetuneSettings
from totalspineseg_server.nnunet.model_folder import models_in

__all__ = ["slab"]


class Trainer:
    """Stands in for the training: keeps the cases, and returns weights that are one larger."""

    def __call__(self, parent: Any, cases: Any, *_: Any, **__: Any) -> Finetuned:
        self.cases = cases
        old = float32_weights(load_checkpoint(parent.checkpoint))
        return Finetuned({name: value + 1 for name, value in old.items()}, 0.5, 2, 0)


pytestmark = pytest.mark.slow


@pytest.fixture
def tuned(
    slab: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Trainer, np.ndarray]:
    """A starter folder, the training that wrote its step 1, and the codes that were predicted in its only patient."""
    trainer = Trainer()
    monkeypatch.setattr(tune_starter, "fine_tune", trainer)
    monkeypatch.setattr(tune_starter, "predict_named", lambda *_: (slab[1], None))
    out = tmp_path / "out"
    options: dict[str, Any] = {"weights": tune_starter.STARTER, "replay_cases": 0, "hidden": {DISC_T12_L1}}
    tune_starter.tune(slab[0], out, 1, FinetuneSettings(), **options)
    return out, trainer, slab[1]


def test_only_the_step_that_was_trained_changes(tuned: tuple[Path, Trainer, np.ndarray], tmp_path: Path) -> None:
    before, after = models_in(tune_starter.STARTER), models_in(tuned[0])
    same = [sha256_of(before[step].checkpoint) == sha256_of(after[step].checkpoint) for step in (1, 2)]
    assert same == [False, True]
    assert (after[2].path / "trust.json").is_file() and not (after[1].path / "trust.json").exists()
    mix_starter.mix(tune_starter.STARTER, tuned[0], tmp_path / "mix", 0.5)
    mixed = models_in(tmp_path / "mix")
    assert sha256_of(mixed[2].checkpoint) == sha256_of(before[2].checkpoint)
    records = [read_json(folder[2].path / "training.json") for folder in (before, mixed)]
    assert records[0] == records[1]
    means = [float32_weights(load_checkpoint(folder[1].checkpoint)) for folder in (before, mixed)]
    for name, value in means[0].items():
        assert torch.allclose(means[1][name], value + 0.5, atol=0.01)


def test_the_record_names_who_was_trained_on(slab: tuple[Path, np.ndarray], tuned: tuple[Path, Any, Any]) -> None:
    """A benchmark must know on whom weights were trained."""
    record, earlier = (
        read_json(models_in(root)[1].path / "training.json") for root in (tuned[0], tune_starter.STARTER)
    )
    new = set(record[TRAINED_ON]) - set(earlier[TRAINED_ON])
    assert new == {sha256_of(slab[0] / "005_label.nii.gz")}
    assert set(earlier[TRAINED_ON]) <= set(record[TRAINED_ON])


def test_nothing_is_learned_about_what_a_slab_does_not_show(tuned: tuple[Path, Trainer, np.ndarray]) -> None:
    (case,) = tuned[1].cases
    assert case.unreviewed == {CORD, DISC_T12_L1}


def test_held_out_patients_are_not_read(
    slab: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        tune_starter, "read_patients", lambda: [replace(patient, held_out=True) for patient in read_patients()]
    )
    monkeypatch.setattr(
        sys, "argv", ["tune_starter", str(slab[0]), str(tmp_path), "--step", "1", "--replay-cases", "0"]
    )
    assert tune_starter.main() == 1
    assert "no slab" in capsys.readouterr().err


def test_landmarks_of_unsure_patients_are_not_learned(slab: tuple[Path, np.ndarray]) -> None:
    sure, unsure = (tune_starter.truth_of(slab[0], "005", sure=sure).codes for sure in (True, False))
    names = [set(np.unique(codes)) - {UNREVIEWED} for codes in (sure, unsure)]
    assert names[1] < names[0]
