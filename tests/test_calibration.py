"""Measuring networks on labeled scans: what counts, and what stays when nothing does."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lib.geometry import Volume
from lib.nnunet import calibration
from lib.nnunet.calibration import STEPS, calibrate
from lib.nnunet.cases import LabeledScan, Origin, ScanSource, Skipped
from lib.prediction import Prediction
from lib.trust import Trust
from phantom import CodeReader, image_of, lumbar_codes

MODELS: Any = {step: SimpleNamespace(step=step, trust=Trust(mirror=False)) for step in STEPS}


class Reader(CodeReader):
    """A network that sees nothing of a dark image where it averages with the mirror."""

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
    """A scan that failed on the second way stayed in the counts of the first, which were compared all the same."""
    monkeypatch.setattr(calibration, "WarmPredictor", Reader)
    skipped: list[Skipped] = []
    found = calibrate(MODELS, [source("a", dark=True), source("b", dark=False)], on_skip=skipped.append)
    assert [case.name for case in skipped] == ["a"]
    assert {step: trust.scans for step, trust in found.items()} == {1: 1, 2: 1}
