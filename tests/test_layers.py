"""Imports between the folders of lib point down only."""

import ast
from pathlib import Path

LIB = Path(__file__).parents[1] / "apps" / "totalspineseg" / "lib"
LAYER = {
    "errors": -2,
    "version": -2,
    "leftovers": -2,
    "fields": -1,  # its errors are ours
    "clock": -2,
    "processes": -2,
    "turns": -2,
    "certainty": -2,
    "anatomy": -1,
    "spellings": 0,
    "trust": 0,
    "geometry": 0,
    "tags": 0,
    "image": 1,
    "image_faults": 1,
    "plausible": 1,
    "agreement": 1,  # the gate and the bench of the starter weights measure by it
    "segments": 1,
    "prediction": 1,
    "transforms": 1,
    "numbering": 2,
    "pipeline": 3,
    "unpacking": 3,
    "pointers": 3,
    "nifti": 3.1,
    "dicom": 3.2,  # draws its demo studies with synthesis
    "volume_io": 3.5,
    "nnunet": 4,
    "registry": 3,
    "corrections": 4,
    "synthesis": 3,  # nnunet trains the starter weights on it
    "gate": 4.5,
    "pacs": 4.5,
    "preview": 4,
    "measurements": 4,
    "run_report": 4,
    "cohort": 5,
    "infers": 5,
    "trainers": 5,
    "activelearning": 5.5,  # scores what the inference tasks record
    "worklist": 5.7,  # shows scores, offers and corrections
    "configs": 6,
    "front": 7,
    "server": 8,
    "cli": 9,
}
FILES = sorted(path for path in LIB.rglob("*.py") if path != LIB / "__init__.py")


def room(path: Path) -> str:
    relative = path.relative_to(LIB)
    return relative.parts[0].removesuffix(".py")


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
        for other in imported_rooms(ast.parse(path.read_text()))
        if room(path) != other and LAYER[room(path)] <= LAYER[other]
    }
    assert upward == set()
    assert len(FILES) > len(LAYER)
