"""Tests of judging a version and of a training's curves, as the lab's page shows them."""

import sys
import time
from pathlib import Path

import pytest
from fastapi import HTTPException

from totalspineseg_server.front import judge as module
from totalspineseg_server.front.judge import Judge
from totalspineseg_server.nnunet.training_log import TrainingLog
from totalspineseg_server.training.runs import MAX_POINTS, RUN_FILE, RunState, curves_of, seconds_left


def judging(monkeypatch: pytest.MonkeyPatch, program: str) -> Judge:
    """A judgment by a small program instead of the gate."""
    monkeypatch.setattr(module, "tied", lambda _: [sys.executable, "-c", program])
    judge = Judge()
    judge.start("v2", ["v2"])
    return judge


def ended(judge: Judge) -> str:
    """Wait for the end, and return the failure."""
    for _ in range(3000):
        if not judge.state()["running"]:
            break
        time.sleep(0.01)
    state = judge.state()
    assert (state["running"], state["version"], state["seconds"], state["message"]) == (False, "v2", 0, "")
    return str(state["failure"])


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 1])
def test_a_verdict_is_no_failure(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(judging(monkeypatch, f"print('scan 1 of 2'); raise SystemExit({code})")) == ""


@pytest.mark.slow
def test_a_judgment_that_breaks_off_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = ended(judging(monkeypatch, "print('scan 1'); print('No disk.'); print(); raise SystemExit(2)"))
    assert "'v2'" in failure and "No disk." in failure
    monkeypatch.setattr(module, "tied", lambda _: ["/nowhere/python"])
    judge = Judge()
    judge.start("v2", [])
    assert "/nowhere/python" in ended(judge)


@pytest.mark.slow
def test_only_one_version_is_judged_at_a_time_and_it_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = judging(monkeypatch, "import time; print('scan 1 of 2'); time.sleep(600)")
    with pytest.raises(HTTPException, match="'v2'"):
        judge.start("v3", ["v3"])
    assert judge.state()["running"]
    judge.stop()
    assert ended(judge) == "", "who stops it knows why it ended"


def test_curves_have_the_last_value_of_each_iteration_and_no_more_points_than_a_picture(tmp_path: Path) -> None:
    """After an interruption the curve ran backward, and a long training sent megabytes to the page."""
    for run in ("1", "2"):
        (tmp_path / run).mkdir()
        (tmp_path / run / RUN_FILE).write_text("{}", encoding="utf-8")
    log = TrainingLog(tmp_path / "2" / "step1")
    for iteration, dice in ((1, 0.1), (2, 0.9), (2, 0.2), (3, None)):
        log.say("epoch", iteration=iteration, loss=1.0 / iteration, dice={"disc": dice})
    log.say("a line that is no epoch")
    assert curves_of(tmp_path) == {
        "1": {"iterations": [1, 2, 3], "loss": [1.0, 0.5, 1 / 3], "dice": {"disc": [0.1, 0.2, None]}}
    }
    for iteration in range(4, 2 * MAX_POINTS):
        log.say("epoch", iteration=iteration, dice={"canal": 0.5})
    curve = curves_of(tmp_path)["1"]
    assert MAX_POINTS / 2 < len(curve["iterations"]) <= MAX_POINTS
    assert curve["iterations"][0] == 1 and curve["loss"][-1] is None
    assert {len(values) for values in curve["dice"].values()} == {len(curve["iterations"])}
    assert curves_of(tmp_path / "nowhere") == {}


def test_the_time_left_is_that_of_the_reports_that_are_missing() -> None:
    assert seconds_left(RunState("1", "running", epoch=2, total_epochs=10, seconds=30.0)) == 120
    assert seconds_left(RunState("1", "running", epoch=0, total_epochs=10, seconds=30.0)) is None
    assert seconds_left(RunState("1", "published", epoch=2, total_epochs=10, seconds=30.0)) is None
