"""Tests of the tables of the long checks and of the coverage."""

import sys
from pathlib import Path

import coverage_table
import pytest
import release_check
from release_check import Check, Figure

FIGURES = (Figure("Dice", r"all ([\d.]+)", floor=0.85), Figure("seconds", r"took ([\d.]+)", ceiling=6))


@pytest.mark.parametrize(
    ("program", "passed", "words"),
    [
        ("print('all 0.5; all 0.9; took 3')", True, "Dice 0.9 (at least 0.85); seconds 3 (at most 6)"),
        ("print('all 0.8; took 3')", False, "Dice 0.8"),
        ("print('all 0.9; took 7')", False, "seconds 7"),
        ("print('all 0.9')", False, "seconds: not printed"),
        ("print('all 0.9; took 3'); raise SystemExit(4)", False, "exit code 4"),
    ],
)
def test_a_check_passes_with_its_exit_code_and_its_figures(
    program: str,
    passed: bool,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(release_check, "CHECKS", (Check("one", (sys.executable, "-c", program), FIGURES),))
    assert release_check.main(["--out", str(tmp_path)]) == (0 if passed else 1)
    table = capsys.readouterr().out
    assert ("passed" in table, "FAILED" in table, words in table) == (passed, not passed, True)
    assert (tmp_path / "one.txt").is_file()


def test_checks_can_be_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = tuple(Check(name, (sys.executable, "-c", "")) for name in ("one", "two"))
    monkeypatch.setattr(release_check, "CHECKS", checks)
    assert release_check.main(["--out", str(tmp_path), "--only", "two"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["two.txt"]
    with pytest.raises(SystemExit):
        release_check.main(["--only", "three"])


def test_coverage_is_listed_by_folder() -> None:
    def summary(*counts: int) -> dict[str, dict[str, int]]:
        return {"summary": dict(zip(coverage_table.COUNTS, counts, strict=True))}

    lib = "apps/totalspineseg/totalspineseg_server"
    files = {f"{lib}/gate/a.py": summary(8, 6, 2, 1), f"{lib}/gate/b.py": summary(2, 2, 0, 0)}
    _, clock, gate, whole = coverage_table.table({**files, f"{lib}/clock.py": summary(10, 0, 2, 0)})
    assert clock.split() == ["clock", "10", "0.0%", "2", "0.0%"]
    assert gate.split() == ["gate", "10", "80.0%", "2", "50.0%"]
    assert whole.split() == ["all", "20", "40.0%", "4", "25.0%"]
