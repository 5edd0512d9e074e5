"""Tests of breaking places of the package on purpose: what is changed, and which tests are run."""

import ast
from pathlib import Path

import break_places
import pytest


@pytest.mark.parametrize(
    ("source", "changed"),
    [
        ("a = b < c", ["a = (b >= c)"]),
        ("a = b not in c", ["a = (b in c)"]),
        ("if ä and b: pass", ["if (not (ä and b)): pass"]),
        ("a = 'ü', 2.0", ["a = 'ü', (5.0)"]),
        ("a = 2", ["a = (3)"]),
        ("a = 95", ["a = (191)"]),
        ("a = True", []),
        ("if TYPE_CHECKING: pass", []),
        ("a = np.zeros((3, 4)), np.bincount(b, minlength=5)", []),
        ("a = secrets.token_hex(4)", []),
        (
            "CHUNK_BYTES: int = 8\nWAIT_S, LIMIT_S = 2.0, 3.0\nSECONDS, MANY = 4, b",
            ["CHUNK_BYTES: int = 8\nWAIT_S, LIMIT_S = 2.0, 3.0\nSECONDS, MANY = (5), b"],
        ),
    ],
)
def test_one_expression_is_changed(source: str, changed: list[str]) -> None:
    assert [break_places.broken(source, place) for place in break_places.places(source)] == changed


def test_every_place_of_a_file_can_be_broken() -> None:
    source = Path(break_places.__file__).read_text(encoding="utf-8")
    places = break_places.places(source)
    assert len(places) > 20
    for place in places[::5]:
        assert ast.dump(ast.parse(break_places.broken(source, place))) != ast.dump(ast.parse(source))


def test_tests_are_found_through_what_imports_a_module(tmp_path: Path) -> None:
    """A module that tests use only through another module was broken, and no test was run."""
    files = {
        "apps/totalspineseg/totalspineseg_server/a.py": "",
        "apps/totalspineseg/totalspineseg_server/b.py": "from totalspineseg_server import a",
        "tests/helper.py": "import totalspineseg_server.b",
        "tests/test_one.py": "from helper import x",
        "tests/test_two.py": "import totalspineseg_server.c",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert break_places.tests_of("totalspineseg_server.a", tmp_path) == [tmp_path / "tests" / "test_one.py"]


def test_what_no_test_notices_is_reported_and_the_project_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, seen = Path("apps/totalspineseg/totalspineseg_server/a.py"), []

    def copy(folder: Path) -> None:
        (folder / module).parent.mkdir(parents=True)
        (folder / module).write_text("a = b < c", encoding="utf-8")
        (folder / "tests").mkdir()
        (folder / "tests" / "test_near.py").write_text("import totalspineseg_server.a", encoding="utf-8")
        (folder / "tests" / "test_far.py").write_text("", encoding="utf-8")

    def failing(words: list[str], root: Path, expression: str) -> str:
        text = (root / module).read_text(encoding="utf-8")
        seen.append(text)
        chosen = [Path(word).name for word in words if not word.startswith("-")]
        failed = [test for test in chosen if outcomes[test](text) and f"--deselect={test}" not in words]
        return (*failed, "")[0]

    monkeypatch.setattr(break_places, "ROOT", tmp_path)
    monkeypatch.setattr(break_places, "copy_project", copy)
    monkeypatch.setattr(break_places, "_failing", failing)
    # The test that imports the module fails whatever the text is, and notices nothing.
    outcomes = {"test_near.py": lambda text: True, "test_far.py": lambda text: ">=" in text}
    assert break_places.main(["--seed", "1"]) == 0
    assert "(b >= c): test_far.py (" in capsys.readouterr().out
    outcomes["test_far.py"] = lambda text: False
    assert break_places.main(["--seed", "1"]) == 1
    assert "totalspineseg_server/a.py:1: b < c -> (b >= c): SURVIVED" in capsys.readouterr().out
    assert (set(seen), list(tmp_path.iterdir())) == ({"a = (b >= c)", "a = b < c"}, [])
