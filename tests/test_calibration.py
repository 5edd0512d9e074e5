"""Tests of measuring networks on labeled scans: which scans count, and what stays if none does."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tiny_models
from phantom import CodeReader, image_of, lumbar_codes
from totalspineseg_server.cli import main, prepare
from totalspineseg_server.geometry import Volume
from totalspineseg_server.nnunet import calibration
from totalspineseg_server.nnunet.calibration import STEPS, calibrate
from totalspineseg_server.nnunet.cases import LabeledScan, Origin, ScanSource, Skipped
from totalspineseg_server.nnunet.discovery import write_trust
from totalspineseg_server.nnunet.model_folder import models_in
from totalspineseg_server.prediction import Prediction
from totalspineseg_server.trust import Trust

MODELS: Any = {step: SimpleNamespace(step=step, trust=Trust(mirror=False)) for step in STEPS}


class Reader(CodeReader):
    """A network that sees nothing in a dark image when it averages the image with its mirror image."""

    def __init__(self, model: Any, *, device: str, trust: Trust) -> None:
        super().__init__(model.step)
        self.mirror = trust.mirror

    def predict(self, channels: Any, *, soft: Any = ()) -> Prediction:
        blind = self.mirror and channels[0].min() < 0
        return super().predict(np.zeros_like(channels) if blind else channels, soft=soft)


def source(name: str, *, dark: bool) -> ScanSource:
    codes = np.ascontiguousarray(lumbar_codes()[:, :, :125])
    image = image_of(codes).astype(np.float32)
    if dark:
        image[0, 0, 0] = -1
    scan = LabeledScan(name, name, Origin.CORRECTION, Volume(image, np.eye(4)), Volume(codes, np.eye(4)))
    return ScanSource(name, Origin.CORRECTION, lambda: scan)


def test_a_scan_counts_where_both_ways_of_predicting_found_a_spine_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A scan that failed in the second way stayed in the counts of the first way, and the two were compared all the
    same."""
    monkeypatch.setattr(calibration, "WarmPredictor", Reader)
    skipped: list[Skipped] = []
    found = calibrate(MODELS, [source("a", dark=True), source("b", dark=False)], on_skip=skipped.append)
    assert [case.name for case in skipped] == ["a"]
    assert {step: trust.scans for step, trust in found.items()} == {1: 1, 2: 1}


@pytest.mark.parametrize("add", [[], ["--add"]], ids=["replace", "add"])
def test_what_was_measured_stays_where_a_step_found_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], add: list[str]
) -> None:
    """A step that found no labeled disc lost its earlier measurement."""
    root = tiny_models.write_models(tmp_path / "weights")
    before = {step: Trust(mirror=True, scans=30 + step) for step in STEPS}
    for step, model in models_in(root).items():
        write_trust(model.path, before[step])
    monkeypatch.setattr(prepare, "labeled_scans", lambda folder, suffix: ((source("a", dark=False),), ()))
    monkeypatch.setattr(calibration, "calibrate", lambda *_, **__: {1: Trust(scans=1), 2: Trust()})
    assert main(["calibrate", str(root), str(tmp_path), *add]) != 0
    assert "step 2" in capsys.readouterr().err
    assert {step: model.trust for step, model in models_in(root).items()} == before
