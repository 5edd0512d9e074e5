"""Tests of writing files whole or not at all, reading JSON, hashing and locking, in UTF-8 and with plain messages."""

import ast
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from totalspineseg_server import files
from totalspineseg_server.errors import StorageError
from totalspineseg_server.files import (
    PARTIAL_PREFIX,
    append_line,
    load_json,
    move_folder,
    read_json,
    read_json_if_there,
    read_json_lines,
    read_json_or,
    remove_leftovers,
    sha256_of,
    staged_folder,
    storage_errors,
    write_json,
    write_text,
)
from totalspineseg_server.locks import NamedLocks, file_lock, is_locked

ROOT = Path(__file__).parents[1]
APP = ROOT / "apps" / "totalspineseg"
KILLED_BEFORE = ("fsync", "replace", "chmod")
IN_C = """
import locale, sys
from pathlib import Path
from totalspineseg_server.files import append_line, read_json, read_json_lines, write_json
locale.setlocale(locale.LC_ALL, "C")
file = Path(sys.argv[1])
content = read_json(file)
write_json(file, {**content, "again": content["name"]})
append_line(file.with_suffix(".jsonl"), '"' + content["name"] + '"')
assert read_json_lines(file.with_suffix(".jsonl")) == [content["name"]]
"""
"""Reads and writes as after a native library has set the process's locale to "C"."""


@pytest.mark.parametrize("moment", KILLED_BEFORE)
def test_a_process_killed_before_the_renaming_leaves_the_old_content(tmp_path: Path, moment: str) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})
    code = (
        "import os, pathlib, signal, sys\nfrom totalspineseg_server import files\n"
        "die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"setattr(files.os if {moment!r} == 'fsync' else pathlib.Path, {moment!r}, die)\n"
        "files.write_json(pathlib.Path(sys.argv[1]), {'new': 1})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], cwd=APP, check=False)
    assert (done.returncode, read_json(file)) == (-signal.SIGKILL, {"old": 1})
    (left,) = set(tmp_path.iterdir()) - {file}
    assert left.name.startswith(PARTIAL_PREFIX)
    remove_leftovers(tmp_path)
    assert left.exists(), "another process may be writing it"
    remove_leftovers(tmp_path, 0)
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_of_a_locale_that_knows_no_umlauts_is_read_and_written(tmp_path: Path) -> None:
    """After a native library had set the locale to "C", no file with an umlaut could be read."""
    file = tmp_path / "a.json"
    write_json(file, {"name": "Müller, größer als 5 µm"})
    subprocess.run([sys.executable, "-X", "utf8=0", "-c", IN_C, str(file)], cwd=APP, check=True)
    assert read_json(file)["again"] == "Müller, größer als 5 µm"


def test_names_that_are_not_utf_8_are_read_back_as_they_were(tmp_path: Path) -> None:
    """Half a surrogate pair, which Python uses in file names, could not be written."""
    write_json(tmp_path / "a.json", {"name": "a\udcff", "other": "ü"})
    assert read_json(tmp_path / "a.json") == {"name": "a\udcff", "other": "ü"}


def test_keys_stay_in_their_order(tmp_path: Path) -> None:
    """nnU-Net reads the regions in the order of the file."""
    write_json(tmp_path / "a.json", {"b": 1, "a": {"d": 1, "c": 2}})
    assert json.dumps(load_json(tmp_path / "a.json")) == '{"b": 1, "a": {"d": 1, "c": 2}}'


def test_where_only_plain_numbers_are_allowed_nothing_else_is_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1.0}, allow_nan=False)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"a": math.nan}, allow_nan=False)
    assert read_json(tmp_path / "a.json") == {"a": 1.0}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"[1]", None])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "record-7.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StorageError, match=r"record-7.json.*Ask Ada"):
        read_json(file, "Ask Ada.")
    assert read_json_or(file, None) is None
    if content is not None:
        with pytest.raises(StorageError, match=r"record-7.json.*Ask Ada"):
            read_json_if_there(file, "Ask Ada.")


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "is full .*Free disk space"), (errno.EACCES, "Permission denied.*permissions")]
)
def test_the_sentence_names_the_file_and_no_folder_under_construction(tmp_path: Path, number: int, words: str) -> None:
    hidden = tmp_path / "models" / f"{PARTIAL_PREFIX}1a2b" / "plans.json"
    for file, name in ((tmp_path / "levels.csv", "levels.csv"), (hidden, "models'")):
        with pytest.raises(StorageError, match=f"{name}.*{words}") as raised, storage_errors(file):
            raise OSError(number, os.strerror(number))
        assert PARTIAL_PREFIX not in str(raised.value)


def test_a_folder_that_did_not_fit_on_the_disk_is_reported_as_that(tmp_path: Path) -> None:
    """A training that could not store its version said: Cannot write to '.partial-e41j2n92' (Error)."""
    hidden = tmp_path / "versions" / f"{PARTIAL_PREFIX}1a2b"
    failed = ("a", "b", str(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(StorageError, match="versions' is full") as raised, storage_errors(hidden):
        raise shutil.Error([failed])
    assert PARTIAL_PREFIX not in str(raised.value)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyError), staged_folder(tmp_path / "in" / "a") as half:
        write_text(half / "text", "half")
        raise KeyError
    assert list((tmp_path / "in").iterdir()) == []
    with staged_folder(tmp_path / "in" / "a") as whole:
        write_text(whole / "text", "whole")
        assert not (tmp_path / "in" / "a").exists()
    move_folder(tmp_path / "in" / "a", tmp_path / "out" / "b")
    assert (tmp_path / "out" / "b" / "text").read_text(encoding="utf-8") == "whole"
    (tmp_path / "in" / "b").mkdir()
    with pytest.raises(StorageError, match="'b' exists already"):
        move_folder(tmp_path / "in" / "b", tmp_path / "out" / "b")


def test_a_power_cut_after_a_folder_appeared_costs_none_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    with staged_folder(tmp_path / "in" / "a") as folder:
        (folder / "below").mkdir()
        write_text(folder / "below" / "text", "text")
        (folder / "copied").write_bytes(b"copied")
    written = [tmp_path / "in", *(tmp_path / "in").rglob("*")]
    assert len(written) == 5
    assert {path.stat().st_ino for path in written} == set(synced)


@pytest.mark.parametrize(
    ("number", "is_written"), [(errno.EINVAL, True), (errno.EIO, False)], ids=["not supported", "a broken disk"]
)
def test_a_share_that_cannot_sync_folders_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_written: bool
) -> None:
    sync = os.fsync

    def of_files_alone(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(files.os, "fsync", of_files_alone)
    try:
        write_text(tmp_path / "a", "text")
    except StorageError:
        assert not is_written
    else:
        assert is_written


def test_a_line_cut_short_costs_nothing_but_itself(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    assert read_json_lines(file) == []
    append_line(file, '{"a": 1}')
    with file.open("ab") as stream:
        stream.write('{"name": "Mü'.encode()[:-1])
    append_line(file, '{"b": 2}')
    assert read_json_lines(file) == [{"a": 1}, {"b": 2}]


def test_the_hash_of_a_series_is_that_of_its_files_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_bytes(name.encode())
    assert sha256_of(tmp_path / "a") == sha256(b"a").hexdigest()
    assert sha256_of(tmp_path) == sha256(b"ab").hexdigest()


def test_a_lock_is_seen_by_others_and_free_afterwards(tmp_path: Path) -> None:
    file = tmp_path / "folder" / ".lock"
    assert not is_locked(file)
    with file_lock(file, 0) as stream:
        assert stream is not None
        assert is_locked(file)
        with file_lock(file, 0) as second:
            assert second is None
    assert not is_locked(file)


def test_each_name_has_a_lock_of_its_own() -> None:
    locks = NamedLocks()
    with locks.of("a"):
        assert locks.of("a").locked()
        assert not locks.of("b").locked()


def calls_of(path: Path, words: Collection[str]) -> Iterator[ast.Call]:
    """Yield the calls in a file; a file without one of the words is not parsed, which takes most of the time."""
    text = path.read_text(encoding="utf-8")
    if any(word in text for word in words):
        yield from (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))


def lacks_encoding(call: ast.Call) -> bool:
    """Return whether a call reads or writes text with the encoding of the locale."""
    arguments = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in arguments:
        return False
    match call.func:
        case ast.Attribute(attr="read_text" | "write_text", value=value):
            return not (isinstance(value, ast.Name) and value.id == "files")
        case ast.Attribute(attr="open", value=value) if ast.unparse(value) not in (
            "os",
            "archive",
            "blosc2",
            "ModelFolder",
        ):
            modes = [arg.value for arg in (*call.args, *arguments.values()) if isinstance(arg, ast.Constant)]
            return not call.args or any(mode in ("r", "w", "a", "x", "r+") for mode in modes)
    return any(isinstance(arguments.get(key), ast.Constant) for key in ("text", "universal_newlines"))


@pytest.mark.parametrize("folder", ["apps", "tests", "tools"])
def test_no_text_depends_on_the_locale(folder: str) -> None:
    """After a native library had set the locale, reading a text failed: 'ascii' codec can't decode."""
    lacking = {
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in (ROOT / folder).rglob("*.py")
        for call in calls_of(path, ("read_text", "write_text", ".open(", "text=", "universal_newlines"))
        if lacks_encoding(call)
    }
    assert lacking == set()
    assert lacks_encoding(ast.parse("file.read_text()", mode="eval").body)  # type: ignore[arg-type]
    assert lacks_encoding(ast.parse("file.open('a')", mode="eval").body)  # type: ignore[arg-type]
    assert lacks_encoding(ast.parse("subprocess.run(words, text=True)", mode="eval").body)  # type: ignore[arg-type]


def test_there_is_one_way_to_write_and_one_to_lock() -> None:
    homes = {"fsync": "files.py", "mkdtemp": "files.py", "flock": "locks.py"}
    users = {
        (call.func.attr, str(path.relative_to(APP / "totalspineseg_server")))
        for path in (APP / "totalspineseg_server").rglob("*.py")
        for call in calls_of(path, homes)
        if isinstance(call.func, ast.Attribute) and call.func.attr in homes
    }
    assert users == set(homes.items())
