"""Break random places of the package, one at a time, and say which of them no test notices.

    .venv/bin/python tools/break_places.py --seed 7 [--count 10] [--fast] [--only numbering/chain.py:61]

In each place one expression is changed: a comparison is flipped, a condition negated, or a number replaced. Then the
test files that import the module are run, and if they notice nothing all others; of both first the tests of
`make test-fast`, then the rest (not with --fast). The project itself is not changed: everything happens in a temporary
copy. Exit code 1: a change survived; read the place, and write the test that would have failed, or find that the change
makes no difference.

Two kinds of numbers are not changed, because no result depends on them: how much is done at a time or how long
something waits (see PACE; a test that measures time fails by chance), and sizes of new arrays and lengths of random
names (see SIZED; most only have to be large enough). Nor is `if TYPE_CHECKING`, which only type checkers read
differently.
"""

import argparse
import ast
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
APP, PACKAGE = Path("apps/totalspineseg"), "totalspineseg_server"
sys.path.insert(0, str(ROOT / APP))

from totalspineseg_server.processes import unwind_on_signals  # noqa: E402

FAST = "not slow and not release and not browser and not ohif and not slicer"
OTHERS = "slow and not release and not browser and not ohif and not slicer"
PACE = re.compile(r"(^|_)(S|SECONDS|(CHUNK|PIECE)_BYTES)$")
"""Names of constants for how much is done at a time, and how long something waits."""
SIZED = ("zeros", "ones", "empty", "full", "token_hex")
"""Functions whose first argument is the shape of a new array, or the length of a random name; so is a
``minlength``."""
NO_TESTS = 5
"""pytest's exit code if no test was chosen."""
_PAIRS = ((ast.Lt, ast.GtE), (ast.Gt, ast.LtE), (ast.Eq, ast.NotEq), (ast.In, ast.NotIn), (ast.Is, ast.IsNot))
OPPOSITE = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}
"""Comparison -> the opposite comparison."""


@dataclass(frozen=True)
class Place:
    """An expression that can be broken.

    Attributes:
        line: Its line, from 1.
        start: Its first byte in the file.
        end: The byte after its last one.
        old: The text of the expression.
        new: The text that replaces it.
    """

    line: int
    start: int
    end: int
    old: str
    new: str


def places(source: str) -> list[Place]:
    """Return the places of a Python file that can be broken, in the order of the text."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found, tree = {}, ast.parse(source)
    left = [*filter(_is_pace, tree.body), *(size for node in ast.walk(tree) for size in _sizes(node))]
    unchanged = {part for node in left for part in ast.walk(node) if isinstance(part, ast.Constant)}
    for node, new in _changes(tree):
        if node in unchanged:
            continue
        begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[operator, union-attr]
        old = source.encode()[begin:end].decode()
        found[begin, end, new] = Place(node.lineno, begin, end, old, f"({new})")
    return [found[key] for key in sorted(found)]


def _is_pace(node: ast.stmt) -> bool:
    """Return whether a statement sets constants that all are paces; see ``PACE``."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    names = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
    return bool(names) and all(PACE.search(name) for name in names)


def _sizes(node: ast.AST) -> list[ast.expr]:
    """Return the sizes of arrays, or of a random name, that a call makes; see ``SIZED``."""
    if not isinstance(node, ast.Call):
        return []
    shape = node.args[:1] if isinstance(node.func, ast.Attribute) and node.func.attr in SIZED else []
    return [*shape, *(word.value for word in node.keywords if word.arg == "minlength")]


def _changes(tree: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            flipped = [OPPOSITE[type(node.ops[0])](), *node.ops[1:]]
            yield node, ast.unparse(ast.Compare(node.left, flipped, node.comparators))
        elif isinstance(node, ast.If | ast.While | ast.IfExp) and not isinstance(node.test, ast.Compare):
            if ast.unparse(node.test) == "TYPE_CHECKING":
                continue
            yield node.test, ast.unparse(ast.UnaryOp(ast.Not(), node.test))
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            # A limit that moves by a hundredth is no fault.
            is_count = isinstance(node.value, int) and node.value < 10
            yield node, repr(node.value + 1 if is_count else 2 * node.value + 1)


def broken(source: str, place: Place) -> str:
    """Return the text of a file with one place broken."""
    content = source.encode()
    return (content[: place.start] + place.new.encode() + content[place.end :]).decode()


def imported(path: Path) -> set[str]:
    """Return the names of the modules, and of their contents, that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def tests_of(module: str, root: Path) -> list[Path]:
    """Return the test files that import a module; if there are none, those of the modules that import it, and so on.

    Those that import least of the package come first.

    Args:
        module: Such as ``numbering.chain``.
        root: The project.
    """
    files = {path: imported(path) for folder in (root / APP, root / "tests") for path in folder.rglob("*.py")}
    tests, wanted, seen = set(), {module}, set()
    while wanted and not tests:
        seen |= wanted
        importers = {path for path, names in files.items() if names & wanted}
        tests = {path for path in importers if path.name.startswith("test_")}
        helpers = {path.stem for path in importers if path.is_relative_to(root / "tests")}
        modules = {_module(path, root) for path in importers if path.is_relative_to(root / APP)}
        wanted = (helpers | modules) - seen
    # A test of few modules is likelier to be about this one, and is done sooner.
    return sorted(tests, key=lambda path: (sum(name.startswith(PACKAGE) for name in files[path]), path))


def _module(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root / APP).with_suffix("").parts).removesuffix(".__init__")


def noticed(file: Path, text: str, tests: Sequence[Path], root: Path, expression: str) -> str:
    """Return the test that fails with a changed file but not with the original one, or "".

    Args:
        file: The file; it has its own text again afterwards.
        text: The changed text.
        tests: Files of tests.
        root: The project.
        expression: Expression of pytest marks that chooses the tests.
    """
    own, useless = file.read_text(encoding="utf-8"), list[str]()
    while True:
        file.write_text(text, encoding="utf-8")
        failed = _failing([*map(str, tests), *(f"--deselect={test}" for test in useless)], root, expression)
        file.write_text(own, encoding="utf-8")
        if not failed or not _failing([failed], root, expression):
            return failed
        if failed in useless:
            return ""
        useless.append(failed)


def _failing(words: Sequence[str], root: Path, expression: str) -> str:
    """Return the first test that fails, or ""."""
    pytest = [str(ROOT / ".venv" / "bin" / "python"), "-m", "pytest", "-x", "-m", expression, "-p", "no:cacheprovider"]
    done = subprocess.run([*pytest, *words], cwd=root, capture_output=True, encoding="utf-8", check=False)
    if done.returncode in (0, NO_TESTS):
        return ""
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0].partition(" ")[2].partition(" - ")[0] if lines else words[0]


def copy_project(copy: Path) -> None:
    """Copy all files that git does not ignore."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)


def main(words: Sequence[str] | None = None) -> int:
    """Break the places one after the other; return 1 if a break was not noticed.

    Args:
        words: Arguments; None for those of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True, help="seed of the choice of places")
    parser.add_argument("--count", type=int, default=10, help="how many places to break (default: 10)")
    parser.add_argument("--fast", action="store_true", help="run only the tests of make test-fast")
    parser.add_argument(
        "--only",
        default="",
        help="break only places of the package that begin with this, such as numbering/ or front/host.py:61",
    )
    arguments = parser.parse_args(words)
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy_project(copy)
        (copy / ".venv").symlink_to(ROOT / ".venv")
        package = copy / APP / PACKAGE
        every = [
            (path, place)
            for path in sorted(package.rglob("*.py"))
            for place in places(path.read_text(encoding="utf-8"))
            if f"{path.relative_to(package)}:{place.line}".startswith(arguments.only)
        ]
        for path, place in random.Random(arguments.seed).sample(every, min(arguments.count, len(every))):
            start, near = time.monotonic(), tests_of(_module(path, copy), copy)
            far = sorted({*(copy / "tests").glob("test_*.py")} - {*near})
            text = broken(path.read_text(encoding="utf-8"), place)
            by = ""
            for tests in filter(None, (near, far)):
                for expression in (FAST,) if arguments.fast else (FAST, OTHERS):
                    by = by or noticed(path, text, tests, copy, expression)
            survivors += not by
            where = f"{path.relative_to(copy / APP)}:{place.line}"
            print(
                f"{where}: {place.old} -> {place.new}: {by or 'SURVIVED'} ({time.monotonic() - start:.0f} s)",
                flush=True,
            )
    print(f"{survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
