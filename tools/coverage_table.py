"""`make coverage`: print the share of lines and branches that the tests run, by folder. It is a figure, not a gate.

.venv/bin/python tools/coverage_table.py FILE      from `coverage json`
"""

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

LIB = "apps/totalspineseg/totalspineseg_server/"
COUNTS = ("num_statements", "covered_lines", "num_branches", "covered_branches")


def table(files: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[str]:
    """Return a line for each folder of the package, and one for all.

    Args:
        files: Path -> entry of the file in ``coverage json``.
    """
    rooms: dict[str, list[int]] = defaultdict(lambda: [0] * len(COUNTS))
    for path, content in files.items():
        room = path.partition(LIB)[2].split("/")[0].removesuffix(".py")
        for name in (room, "all"):
            rooms[name] = [sum(pair) for pair in zip(rooms[name], map(content["summary"].get, COUNTS), strict=True)]
    rows = [row(name, rooms[name]) for name in sorted(rooms, key=lambda name: (name == "all", name))]
    return [f"{'folder':<20}{'lines':>8}{'covered':>9}{'branches':>10}{'covered':>9}", *rows]


def row(name: str, counts: Sequence[int]) -> str:
    """Return the line of one folder."""
    lines, run, branches, taken = counts
    return f"{name:<20}{lines:>8}{share(run, lines):>9}{branches:>10}{share(taken, branches):>9}"


def share(part: int, whole: int) -> str:
    """Return a percentage; 100 % if there is nothing."""
    return f"{part / whole if whole else 1:.1%}"


if __name__ == "__main__":
    print("\n".join(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["files"])))
