"""Imports between the rooms of lib point down only, as the table in docs/design.md has them."""

import ast

from rooms import LIB, layers, room_of

LAYER = layers()
FILES = sorted(path for path in LIB.rglob("*.py") if path != LIB / "__init__.py")


def imported_rooms(tree: ast.AST) -> set[str]:
    rooms = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lib":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("lib.")}
    return rooms


def test_imports_point_down() -> None:
    upward = {
        f"{path.relative_to(LIB)} imports {other}"
        for path in FILES
        for other in imported_rooms(ast.parse(path.read_text(encoding="utf-8")))
        if room_of(path) != other and LAYER[room_of(path)] <= LAYER[other]
    }
    assert upward == set()


def test_the_table_of_the_rooms_is_that_of_the_folders() -> None:
    """A room that is gone stayed in the map, and a new one was not in it."""
    assert set(LAYER) == {room_of(path) for path in FILES} | {"main"}
