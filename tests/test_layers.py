"""Tests of the map in docs/design.md: imports between rooms point down only, and names are where it says."""

import ast
import re
from pathlib import Path

import pytest
from rooms import APP, DESIGN, LIB, layers, room_of

LAYER = layers()
ROW = re.compile(r"^\| [^|]+ \| (`[^|]+) \| `([\w.]+)` \|$", re.MULTILINE)
CHANGES = ROW.findall(DESIGN.read_text(encoding="utf-8"))
"""Files and the name in the last of them, of the table that says where to change what."""
FILES = sorted(path for path in LIB.rglob("*.py") if path != LIB / "__init__.py")


IMPORT = re.compile(r"^[ \t]*((?:from|import) totalspineseg_server\b[^\n(]*(?:\([^)]*\))?)", re.MULTILINE)
"""An import of the package; only these lines are parsed, which takes a tenth of the time."""


def imported_rooms(text: str) -> set[str]:
    rooms = set()
    for node in ast.parse("\n".join(IMPORT.findall(text))).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "totalspineseg_server":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("totalspineseg_server.")}
    return rooms


def test_imports_point_down() -> None:
    upward = {
        f"{path.relative_to(LIB)} imports {other}"
        for path in FILES
        for other in imported_rooms(path.read_text(encoding="utf-8"))
        if room_of(path) != other and LAYER[room_of(path)] <= LAYER[other]
    }
    assert upward == set()


def test_the_table_of_the_rooms_is_that_of_the_folders() -> None:
    """A room that is gone stayed in the map, and a new one was not in it."""
    assert set(LAYER) == {room_of(path) for path in FILES}


def defined(file: Path) -> set[str]:
    """Return the names of functions, classes and constants; methods follow the name of their class."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            found |= {f"{node.name}.{inner.name}" for inner in ast.walk(node) if isinstance(inner, ast.FunctionDef)}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize(("files", "name"), CHANGES, ids=[name for _, name in CHANGES])
def test_what_somebody_wants_to_change_is_where_the_map_says(files: str, name: str) -> None:
    """The map named files that did not (or no longer) define the thing."""
    paths = [APP / file for file in re.findall(r"`([^`]+)`", files)]
    assert all(path.is_file() for path in paths)
    assert name in defined(paths[-1])


def test_the_map_says_where_to_change_what() -> None:
    assert len(CHANGES) >= 15


def test_the_glossary_is_short() -> None:
    """Twenty words can be learned; the first version had more words for its clients alone."""
    words = DESIGN.read_text(encoding="utf-8").split("## Words", 1)[1].split("\n## ", 1)[0]
    assert 10 <= words.count("\n| ") - 1 <= 20


def test_no_two_files_have_one_name() -> None:
    """A newcomer who had found store.py, spine.py or weights.py had found one of three."""
    names = [path.name for path in FILES if path.name != "__init__.py"]
    assert sorted(names) == sorted(set(names))
