"""Tests of the reports and exit codes of `make demo` and `make bench-retrain`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bench_retrain
import demo
import pytest
import retraining_bench
from local_server import TrainingFailedError
from monailabel.client.client import MONAILabelClientException

from phantom import RAS, lumbar_codes
from totalspineseg_server.agreement import LEVELS, MEASURES
from totalspineseg_server.anatomy import WIRE_LABELS
from totalspineseg_server.geometry import Volume
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.segments import to_wire
from totalspineseg_server.training.retrain_settings import read_settings

BEFORE = {"step1": "old-1", "step2": "old-2"}
AFTER = {"step1": "new-1", "step2": "new-2"}
HALF = {"step1": "new-1", "step2": "old-2"}
ROW = demo.Row("sub-1", 1.0, "9 of 9", 0.9, "counted", "9 segments", "same", BEFORE)


class Server:
    """Answers as a server whose training has ended, and says which version is in use now."""

    def __init__(self, task: str, stats: dict[str, Any], models: dict[str, str]) -> None:
        self._task, self._stats, self._models = task, stats, models

    def train_start(self, model: str, params: dict[str, str]) -> None:
        pass

    def train_status(self, check_if_running: bool = False) -> Any:
        return False if check_if_running else {"status": self._task, "details": ["no room on the disk"]}

    def info(self) -> dict[str, Any]:
        return {"train_stats": {"totalspineseg": self._stats}}

    def infer(self, model: str, image: str, params: dict[str, str]) -> tuple[str, dict[str, Any]]:
        return "", {"models": self._models}


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The demo with everything done but its training."""

    @contextmanager
    def serving(*_: Any) -> Iterator[str]:
        yield "http://127.0.0.1"

    monkeypatch.setattr(sys, "argv", ["demo.py", "--studies", "1", "--out", str(tmp_path)])
    for name in ("demo_studies", "own_app"):
        monkeypatch.setattr(demo, name, lambda *_, **__: None)
    monkeypatch.setattr(demo, "serving", serving)
    monkeypatch.setattr(demo, "loop", lambda *_: [ROW])
    monkeypatch.setattr(demo, "refused", lambda *_: "refused")
    return monkeypatch


@pytest.mark.parametrize(
    ("task", "status", "models", "code", "printed"),
    [
        ("DONE", "published", AFTER, 0, "Made by now:    new-1, new-2"),
        ("DONE", "refused", BEFORE, 0, "discs fell"),
        ("DONE", "published", BEFORE, 1, "a version was published, but"),
        ("DONE", "published", HALF, 1, "a version was published, but"),
        ("DONE", "refused", AFTER, 1, "must not be used"),
        ("DONE", "interrupted", BEFORE, 1, "ended as 'interrupted'"),
        ("DONE", None, BEFORE, 1, "ended as None"),
        ("ERROR", "failed", BEFORE, 1, "ended as ERROR:\nno room on the disk"),
        ("STOPPED", "interrupted", BEFORE, 1, "ended as STOPPED"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 12 else "",
)
def test_the_demo_fails_with_its_training(
    prepared: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    task: str,
    status: str | None,
    models: dict[str, str],
    code: int,
    printed: str,
) -> None:
    """The demo ended well however its training had ended."""
    stats = {"status": status, "message": "discs fell"} if status else {}
    prepared.setattr(demo, "MONAILabelClient", lambda *_, **__: Server(task, stats, models))
    assert demo.main() == code
    out = capsys.readouterr().out
    assert (printed in out, "FAILED" in out) == (True, code == 1)


def test_a_demo_without_a_finished_study_fails(
    prepared: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared.setattr(demo, "loop", lambda *_: [])
    prepared.setattr(demo, "MONAILabelClient", lambda *_, **__: None)
    assert demo.main() == 1
    assert "NOT TRAINED" in capsys.readouterr().out


def table(new: tuple[float, float], old: tuple[float, float], levels: tuple[float, float]) -> retraining_bench.Table:
    """Mean Dice before and after on both scanners, and the levels of the old one."""

    def pair(values: tuple[float, float]) -> dict[str, float]:
        return {"before": values[0], "after": values[1]}

    same = {LEVELS: pair((0.5, 0.5))}
    return {
        "new scanner": {"mean Dice": pair(new), **same},
        "old scanner": {"mean Dice": pair(old), LEVELS: pair(levels)},
    }


@pytest.mark.parametrize(
    ("new", "old", "levels", "half", "worse"),
    [
        ((0.6, 0.8), (0.8, 0.8), (1, 1), "half of it is gone", []),
        ((0.6, 0.7), (0.8, 0.795), (1, 1), "half of it is not gone yet", []),
        ((0.6, 0.8), (0.8, 0.785), (1, 1), "half of it is gone", ["mean Dice of the old scanner: 0.800 -> 0.785"]),
        ((0.6, 0.8), (0.8, 0.8), (1, 0.9), "half of it is gone", ["levels of the old scanner: 1.000 -> 0.900"]),
        ((0.6, 0.5), (0.8, 0.8), (1, 1), "not gone yet", ["mean Dice of the new scanner: 0.600 -> 0.500"]),
    ],
    ids=["gained much", "gained less", "old scanner fell", "old levels fell", "new scanner fell"],
)
def test_the_benchmark_fails_when_something_became_worse(
    new: tuple[float, float], old: tuple[float, float], levels: tuple[float, float], half: str, worse: list[str]
) -> None:
    """The benchmark also ended with an error if everything became better, but not by half."""
    found = table(new, old, levels)
    assert half in retraining_bench.sentence(found["new scanner"], "new scanner")
    assert retraining_bench.worse(found) == worse


class Scans:
    """Answers as a server that finds no spine in scans with that name, fails on others, and is right on the rest."""

    def __init__(self, folder: Path, truth: Volume) -> None:
        self._folder, self._truth = folder, truth

    def infer(self, model: str, image: str, params: dict[str, str]) -> tuple[str, dict[str, Any]]:
        for name, status in (("no spine", 422), ("full disk", 507)):
            if name in image:
                raise MONAILabelClientException(3, f"Status: {status}; Response: {name}")
        file = self._folder / "answer.nii.gz"
        write_volume(file, to_wire(self._truth.data), self._truth.grid)
        return str(file), {"models": AFTER, "label_names": dict(WIRE_LABELS)}


def test_the_benchmark_counts_a_refused_scan_as_one_without_a_structure(tmp_path: Path) -> None:
    """Left out of the mean, a model that finds no spine would look as good as one that finds every spine."""
    truth = Volume(lumbar_codes(), RAS.affine)
    cases = [retraining_bench.Case(name, truth) for name in ("sub-1", "sub-2 no spine")]
    scores, versions = bench_retrain.predict(Scans(tmp_path, truth), cases)
    assert [score.value(measure) for score in scores for measure in MEASURES] == [1] * 6 + [0] * 6
    assert versions == set(AFTER.values())
    assert list(tmp_path.iterdir()) == []
    rows = retraining_bench.rows_of([scores[1], scores[1]], scores)
    assert rows["mean Dice"] == rows[LEVELS] == {"before": 0, "after": 0.5}
    sentence = retraining_bench.sentence(rows, "new scanner")
    assert "mean Dice 50%" in sentence
    assert "levels 50%" in sentence


def test_the_benchmark_ends_with_the_name_of_a_scan_that_could_not_be_asked_about(tmp_path: Path) -> None:
    truth = Volume(lumbar_codes(), RAS.affine)
    with pytest.raises(retraining_bench.ServerError, match=r"sub-3 full disk: Status: 507"):
        bench_retrain.predict(Scans(tmp_path, truth), [retraining_bench.Case("sub-3 full disk", truth)])


def test_the_benchmark_trains_with_what_its_command_line_says() -> None:
    arguments = bench_retrain.arguments_of(["--iterations", "7", "--batch-size", "3", "--replay-share", "0.25"])
    sent = {name: str(getattr(arguments, name)) for name in retraining_bench.SETTINGS}
    settings = read_settings(sent, (1, 2))
    assert (settings.finetune.iterations, settings.finetune.batch_size) == (7, 3)
    assert (settings.finetune.replay_share, settings.replay_cases) == (0.25, arguments.replay_cases)
    assert (settings.finetune.learning_rate, settings.finetune.device) == (None, "auto")
    assert read_settings(sent | {"learning_rate": "1e-4"}, (1, 2)).finetune.learning_rate == 1e-4


def test_the_benchmark_takes_a_gpu_if_there_is_one() -> None:
    """The benchmark used the CPU although a GPU was idle."""
    assert bench_retrain.arguments_of([]).device == "auto"


def test_a_training_without_a_verdict_is_an_error() -> None:
    with pytest.raises(TrainingFailedError, match="no room"):
        bench_retrain.train(Server("ERROR", {}, BEFORE), "totalspineseg", {}, show=print)
