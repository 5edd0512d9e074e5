"""Tests that nothing uses what Windows or macOS lack, on a machine that has it."""

import ast
import functools
import importlib.util
import pickle
import re
import sys
import types
from pathlib import Path

import mypy
import pytest
from rooms import LIB, ROOT

from totalspineseg_server import files, processes
from totalspineseg_server.corrections.ids import file_stem, new_id

STUBS = Path(mypy.__file__).parent / "typeshed" / "stdlib"
FILES = sorted(LIB.rglob("*.py"))
OTHERS = ("win32", "darwin")
ILLEGAL = set('<>:"|?*')
IMPORT = re.compile(r"^\s*(?:import|from) (.*)", re.MULTILINE)
LINKS = {"symlink", "link", "symlink_to", "hardlink_to"}


def stub(module: str) -> Path | None:
    path = STUBS / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".pyi"), path / "__init__.pyi") if file.is_file()), None)


def holds(test: ast.expr, platform: str) -> bool | None:
    """Return whether a condition of a stub holds on a platform; None if it is about something else."""
    if isinstance(test, ast.BoolOp):
        parts = [holds(value, platform) for value in test.values]
        if isinstance(test.op, ast.And):
            return False if False in parts else None if None in parts else True
        return True if True in parts else None if None in parts else False
    if isinstance(test, ast.Compare) and ast.unparse(test.left) == "sys.platform":
        same = platform == ast.literal_eval(test.comparators[0])
        return same if isinstance(test.ops[0], ast.Eq) else not same
    return None


def names(body: list[ast.stmt], platform: str) -> set[str]:
    """Return what a stub defines on a platform."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.If):
            answer = holds(node.test, platform)
            found |= names(node.body, platform) if answer is not False else set()
            found |= names(node.orelse, platform) if answer is not True else set()
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            members = names(node.body, platform) if isinstance(node, ast.ClassDef) else set()
            found |= {f"{node.name}.{name}" for name in members}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


@functools.cache
def lacking(module: str) -> set[str]:
    """Return what a module of Python has on Linux and not on every other platform."""
    file = stub(module)
    body = ast.parse(file.read_text(encoding="utf-8")).body if file else []
    return names(body, "linux") - set.intersection(*(names(body, platform) for platform in OTHERS))


def guarded(node: ast.AST) -> bool:
    """Return whether what is below asks for the platform, or what it has, first."""
    if isinstance(node, ast.If | ast.IfExp):
        parts = list(ast.walk(node.test))
        platform = any(isinstance(part, ast.Attribute) and part.attr == "platform" for part in parts)
        return platform or any(isinstance(part, ast.Name) and part.id == "hasattr" for part in parts)
    return isinstance(node, ast.Try) and any("ImportError" in ast.unparse(h.type) for h in node.handlers if h.type)


def used(tree: ast.AST) -> set[tuple[str, str]]:
    """Return module and name of what a file uses of other modules, outside of guards."""
    modules = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    found: set[tuple[str, str]] = set()

    def visit(node: ast.AST) -> None:
        if guarded(node):
            return
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            found.add((modules[node.value.id], node.attr))
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update((node.module, alias.name) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def missing(text: str) -> set[str]:
    """Return what a file uses that another system lacks; one without any of the words is not parsed."""
    modules = {word for line in IMPORT.findall(text) for word in re.findall(r"[\w.]+", line)}
    if not {name for module in modules for name in lacking(module)} & set(re.findall(r"\w+", text)):
        return set()
    return {f"{module}.{name}" for module, name in used(ast.parse(text)) if name in lacking(module)}


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """The text of each file of the package."""
    return {str(file.relative_to(LIB)): file.read_text(encoding="utf-8") for file in FILES}


def test_no_module_uses_what_another_system_lacks(texts: dict[str, str]) -> None:
    """On Windows ``import fcntl`` and ``signal.SIGHUP`` ended every command at once."""
    found = {file: missing(text) for file, text in texts.items()}
    assert {file: bad for file, bad in found.items() if bad} == {}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import fcntl\nfcntl.flock(1, fcntl.LOCK_EX)", {"fcntl.flock", "fcntl.LOCK_EX"}),
        ("import signal\nsignal.SIGHUP", {"signal.SIGHUP"}),
        ("import os\nos.fork()", {"os.fork"}),
        ("import os, sys\nif sys.platform != 'win32':\n    os.fork()", set()),
        ("import os\nos.getpid()", set()),
    ],
)
def test_the_check_finds_what_windows_lacks(line: str, expected: set[str]) -> None:
    assert missing(line) == expected


def test_nothing_makes_links(texts: dict[str, str]) -> None:
    """Windows lets only administrators make links."""
    calls = {
        f"{file}: {node.attr}"
        for file, text in texts.items()
        if any(link in text for link in LINKS)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and node.attr in LINKS
    }
    assert calls == set()


def test_names_of_files_are_legal_on_windows() -> None:
    tracked = [path for path in LIB.parent.rglob("*") if "node_modules" not in path.parts]
    assert [path.name for path in tracked if ILLEGAL & set(path.name) or path.name.endswith((".", " "))] == []
    assert not ILLEGAL & set(new_id() + file_stem('5: t2 "tse" <sag>|*?'))
    assert max(len(str(path.relative_to(ROOT))) for path in tracked) < 200


class Msvcrt(types.ModuleType):
    """Locks of bytes as Windows has them, by the file's place on the disk."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self.held: set[tuple[int, int]] = set()

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        import os

        key = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        if key in self.held:
            raise PermissionError(13, "Permission denied")
        self.held.add(key)


def test_locks_work_where_there_is_only_msvcrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = Msvcrt()
    monkeypatch.setitem(sys.modules, "msvcrt", system)
    monkeypatch.setattr(sys, "platform", "win32")
    spec = importlib.util.spec_from_file_location("locks_of_windows", LIB / "locks.py")
    assert spec is not None
    assert spec.loader is not None
    locks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(locks)
    file = tmp_path / "folder" / ".lock"
    with locks.file_lock(file, 0) as first, locks.file_lock(file, 0) as second:
        assert (first is None, second is None) == (False, True)
        assert locks.is_locked(file)
    system.held.clear()
    assert not locks.is_locked(file)
    system.held.clear()
    with (
        locks.locked(tmp_path / "folder"),
        pytest.raises(Exception, match="locked"),
        locks.locked(file.parent, seconds=0),
    ):
        pass


def test_files_are_written_without_what_posix_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows cannot open a folder to sync it."""
    monkeypatch.setattr(files.sys, "platform", "win32")
    monkeypatch.setattr(files.os, "open", lambda *_: pytest.fail("a folder was opened"))
    with files.staged_folder(tmp_path / "version") as folder:
        (folder / "a").write_bytes(b"1")
    assert (tmp_path / "version" / "a").read_bytes() == b"1"


def test_a_program_is_started_as_it_is_where_linux_cannot_tie_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.sys, "platform", "win32")
    assert processes.tied(["orthanc", "--x"]) == ["orthanc", "--x"]


def test_what_worker_processes_get_can_be_sent_to_them() -> None:
    """With ``spawn`` a worker process gets its data as a pickle, not as a copy of the memory."""
    from totalspineseg_server.nnunet.starter import _Stream
    from totalspineseg_server.nnunet.starter_plans import StarterSettings

    sent = pickle.dumps(_Stream(1, 3, (32, 32, 32), StarterSettings(), None, ()))
    stream = pickle.loads(sent)  # noqa: S301
    assert (stream.step, stream.seed, stream.patch) == (1, 3, (32, 32, 32))
