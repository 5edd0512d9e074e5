"""Tests that the script for a GPU machine runs to its end on a CPU with tiny networks, and continues after a stop."""

import json
from pathlib import Path

import bench_gpu
import pytest

from tiny_models import write_model_folder
from training_site import SPACING_MM, tiny_scan

pytestmark = pytest.mark.slow


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(bench_gpu, "synthetic_scan", lambda *_, seed: tiny_scan(seed))
    write_model_folder(tmp_path / "models", 2, spacing=SPACING_MM)
    options = ["--weights", str(tmp_path / "models"), "--device", "cpu", "--replay-cases", "0", "--patches", "1"]
    return [str(tmp_path / "out"), *options, "--batch-size", "1", "--iterations", "3"]


def test_the_script_for_a_gpu_measures_and_goes_on(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The minute that is kept for measuring is all there is: it stops after one iteration.
    assert bench_gpu.main([*words, "--minutes", "1"]) == 0
    assert "stopped at iteration 1 of 3" in capsys.readouterr().out
    assert bench_gpu.main(words) == 0
    found = json.loads((tmp_path / "out" / "bench_gpu.json").read_text(encoding="utf-8"))
    assert found["iterations of this call"] == 2, "it began anew"
    assert 0 <= found["share of waiting"] <= 1
    assert found["before"].keys() == found["after"].keys() == bench_gpu.REGIONS[2].keys()
