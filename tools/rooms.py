"""Read the table of rooms in ``docs/design.md``, for the test of the layers and the tool that counts the walks."""

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
APP: Final = ROOT / "apps" / "totalspineseg"
LIB: Final = APP / "totalspineseg_server"
DESIGN: Final = ROOT / "docs" / "design.md"
ROW: Final = re.compile(r"^\| (\d+) \| (`[^|]+`) \|")


def layers() -> dict[str, int]:
    """Return the layer of each room, the lowest first.

    Raises:
        ValueError: A room is in the table twice.
    """
    found: dict[str, int] = {}
    for line in DESIGN.read_text(encoding="utf-8").splitlines():
        if row := ROW.match(line):
            for room in re.findall(r"`([a-z_]+)/?`", row[2]):
                if room in found:
                    raise ValueError(f"{room!r} is in the table of rooms twice")
                found[room] = int(row[1])
    return found


def room_of(path: Path) -> str:
    """Return the room of a file of ``totalspineseg_server``."""
    return path.relative_to(LIB).parts[0].removesuffix(".py")
