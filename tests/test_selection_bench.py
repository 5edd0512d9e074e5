"""Tests of `make bench-selection`: its counts, and that its trainings run, continue, and end with a table."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_selection
import pytest
from local_server import own_app
from server_process import server_process

from tiny_models import write_models
from totalspineseg_server.activelearning.scores import Parts

TESTS = Path(__file__).parent


def result(name: str, names: float | None, right: bool) -> Any:
    return SimpleNamespace(name=name, parts=Parts(names=names), right=right)


def test_the_first_fifth_is_the_most_doubtful() -> None:
    results = [result(f"s{k}", k / 10, k % 2 == 0) for k in range(9)] + [result("a", None, True)]
    first = bench_selection.first_fifth(results, lambda parts: parts.names)
    assert [one.name for one in first] == ["s8", "s7"]
    assert [one.name for one in bench_selection.first_fifth(results[::-1], lambda parts: 0.5)] == ["a", "s0"]


def test_luck_is_that_of_a_draw_without_return() -> None:
    assert bench_selection.chance_of(0, 7, 10, 35) == pytest.approx(1)
    assert bench_selection.chance_of(2, 2, 2, 4) == pytest.approx(1 / 6)
    assert bench_selection.chance_of(1, 2, 2, 4) == pytest.approx(5 / 6)


def test_the_table_has_a_mean_and_each_site() -> None:
    def site(*values: float) -> dict[str, Any]:
        before, *after = ({"outlines": value, "names": 0.5} for value in values)
        return {"before": before, "rounds": [{"errors": errors} for errors in after]}

    sites = {"0/random": site(0.4, 0.3), "1/random": site(0.6, 0.3)}
    sites |= {"0/most_to_learn": site(0.4, 0.1), "1/most_to_learn": site(0.6, 0.2)}
    lines = bench_selection.table({"plan": {"corrections": 5}, "sites": sites}).splitlines()
    assert lines[2] == "| outlines | 0 | 0.500 (0.400, 0.600) | 0.500 (0.400, 0.600) |"
    assert lines[3] == "| outlines | 5 | 0.300 (0.300, 0.300) | 0.150 (0.100, 0.200) |"
    assert len(lines) == 6


def test_scans_of_a_site_are_the_same_each_time_and_those_of_another_are_not(tmp_path: Path) -> None:
    kind, plan = bench_selection.KINDS[0], bench_selection.QUICK
    names = [[c.name for c in bench_selection.make_scans(tmp_path, seed, kind, 1, plan, first=0)] for seed in (0, 0, 1)]
    assert names[0] == names[1]
    assert not set(names[0]) & set(names[2])
    assert len(list(tmp_path.iterdir())) == 2


def unjudged_app(folder: Path, weights: str) -> None:
    """The gate accepts networks that find anything, because judging these networks takes minutes."""
    own_app(folder, weights)
    (folder / "main.py").unlink()
    (folder / "main.py").symlink_to(TESTS / "publishing_app" / "main.py")


@contextmanager
def unjudged_server(studies: Path, app: Path, log: Path) -> Iterator[str]:
    with server_process(studies, app, log, modules=[TESTS], environment={"OMP_NUM_THREADS": "1"}) as (url, _):
        yield url


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_half_with_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_selection, "KINDS", bench_selection.KINDS[:1])
    monkeypatch.setattr(bench_selection, "own_app", unjudged_app)
    monkeypatch.setattr(bench_selection, "serving", unjudged_server)
    weights, out = write_models(tmp_path / "weights", spacing=(4.0, 4.0, 4.0)), tmp_path / "out"
    words = ["trainings", "--quick", "--out", str(out), "--weights", str(weights)]
    bench_selection.main(words)
    known = json.loads((out / "selection.json").read_text(encoding="utf-8"))
    entry = known["0/most_to_learn, round 1"]
    ((image, offered),) = entry["corrected"].items()
    assert (offered["strategy"], bool(offered["score"]), entry["status"]) == ("most_to_learn", True, entry["status"])
    assert (out / "site-0" / "most_to_learn" / "studies" / f"{image}.nii.gz").is_file()
    assert known["0/random, round 1"]["errors"].keys() == {"outlines", "names"}
    assert (out / "selection.png").stat().st_size > 1000
    assert "| outlines | 1 |" in capsys.readouterr().out

    # It was killed before it recorded the round: the label is there, and is not trained on again.
    before = known.pop("0/random, round 1")
    (out / "selection.json").write_text(json.dumps(known), encoding="utf-8")
    monkeypatch.setattr(bench_selection, "train", None)
    bench_selection.main(words)
    assert json.loads((out / "selection.json").read_text(encoding="utf-8"))["0/random, round 1"] == before
    monkeypatch.setattr(bench_selection, "QUICK", replace(bench_selection.QUICK, corrections=2))
    with pytest.raises(SystemExit, match="--out"):
        bench_selection.main(words)
