"""Tests that the script for a GPU machine runs to its end on a CPU with tiny networks, and continues after a stop."""

import json
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench_gpu
import bench_official
import bench_speed
import pytest

from tiny_models import write_model_folder
from totalspineseg_server.synthesis import Field
from training_site import SPACING_MM, tiny_scan


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(bench_gpu, "synthetic_scan", lambda *_, seed: tiny_scan(seed))
    write_model_folder(tmp_path / "models", 2, spacing=SPACING_MM)
    options = [
        "--learn",
        "--weights",
        str(tmp_path / "models"),
        "--device",
        "cpu",
        "--replay-cases",
        "0",
        "--patches",
        "1",
    ]
    return [str(tmp_path / "out"), *options, "--batch-size", "1", "--iterations", "3"]


@pytest.mark.slow
def test_the_script_for_a_gpu_measures_and_goes_on(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The minute that is kept for measuring is all there is: it stops after one iteration.
    assert bench_gpu.main([*words, "--minutes", "1"]) == 0
    assert "stopped at iteration 1 of 3" in capsys.readouterr().out
    assert bench_gpu.main(words) == 0
    found = json.loads((tmp_path / "out" / bench_gpu.LEARNED).read_text(encoding="utf-8"))
    assert found["iterations of this call"] == 2, "it began anew"
    assert 0 <= found["share of waiting"] <= 1
    assert found["before"].keys() == found["after"].keys() == bench_gpu.REGIONS[2].keys()


OFFICIAL = ["official half", "official nnU-Net", "official training"]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tiny networks and scans, whose tasks run in this process."""

    def here(arguments: Namespace, task: Sequence[str], seconds: float) -> Any:
        arguments.started = time.time()
        return json.loads(json.dumps(bench_gpu.TASKS[task[0]](arguments, *task[1:])))

    monkeypatch.setattr(bench_gpu, "alone", here)
    monkeypatch.setattr(bench_gpu, "synthetic_scan", lambda *_, seed: tiny_scan(seed))
    monkeypatch.setattr(bench_gpu, "ITERATIONS", 4)
    monkeypatch.setattr(bench_official, "FEATURES", [2, 4])
    monkeypatch.setattr(bench_official, "BLOCKS", [1, 1])
    monkeypatch.setattr(bench_gpu, "SCANS", ("lumbar",))
    monkeypatch.setattr(bench_speed, "SCANS", {"lumbar": (Field.LUMBAR, (36, 64, 80))})
    options = ["--device", "cpu", "--patch", "64", "64", "32", "--batch-size", "1", "--repeats", "1"]
    return [str(tmp_path / "out"), *options, "--parts", *OFFICIAL]


@pytest.mark.slow
def test_the_table_of_a_gpu_has_every_part_that_fits_into_the_time(
    small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(bench_gpu, "PARTS", {**bench_gpu.PARTS, "official training": 1000.0})
        assert bench_gpu.main(small) == 0
    first = capsys.readouterr().out
    assert "Not measured: official training, because only" in first
    assert bench_gpu.main(small) == 0
    table = capsys.readouterr().out
    assert "Not measured" not in table
    lines = [line for line in table.splitlines() if line.startswith("| official")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[2] for row in rows[:2]] == ["ours, half precision", "nnU-Net"]
    for row in rows[:2]:
        cold, warm, networks = map(float, row[4:7])
        assert 0 < networks <= warm and cold > 0
    # Nothing was measured twice.
    assert [line for line in first.splitlines() if "lumbar" in line] == [x for x in table.splitlines() if "lumbar" in x]
    # Both predictors computed the same tiles.
    assert rows[0][3] == rows[1][3] != "0 + 0"
    ((shape, batch, seconds, waits, _),) = rows[2:]
    assert (shape, batch) == ("official, 64 x 64 x 32", "1")
    assert float(seconds) > 0 and 0 <= int(waits.rstrip("%")) <= 100


def test_time_in_which_the_gpu_works_counts_once() -> None:
    assert bench_gpu.covered([(5, 6), (0, 2), (1, 4), (1, 2)]) == 5
    assert bench_gpu.covered([]) == 0
