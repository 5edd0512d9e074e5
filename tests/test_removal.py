"""Tests of ``totalspineseg models remove``: the weights of a version are deleted, its record stays."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from totalspineseg_server.cli import main
from totalspineseg_server.errors import StorageError, WeightsError
from totalspineseg_server.registry import removal
from totalspineseg_server.registry.manage import show_version
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.registry.records import VersionRecord, lineage, removed_versions, trained_on, write_record
from totalspineseg_server.registry.removal import remove_versions

MODEL = "step1/fold_0/checkpoint_final.pth"


def add(store: ModelStore, name: str, parent: str) -> None:
    """Add a version that learned from a correction named after it; without a parent it is from elsewhere."""
    parents = {str(step): {"name": parent, "version": parent} for step in (1, 2) if parent}
    training = [{"correction": f"of-{name}", "taught": [1, 2]}]
    with store.publish(name) as staging:
        (staging / MODEL).parent.mkdir(parents=True)
        (staging / MODEL).write_bytes(b"w" * (3 << 20))
        write_record(staging, VersionRecord(name, "2026-01-01T00:00:00+00:00", (1, 2), parents, {}, training))


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """Versions a, b and c, each made from the one before, which were in use one after the other."""
    made = ModelStore(tmp_path / "model")
    (made.model_dir / "starter").mkdir(parents=True)
    for name, parent in (("a", "starter"), ("b", "a"), ("c", "b")):
        add(made, name, parent)
        made.activate(name)
    return made


def run(store: ModelStore, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["models", *words, "--data-dir", str(store.model_dir)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_a_removed_ancestor_is_still_known(store: ModelStore, capsys: pytest.CaptureFixture[str]) -> None:
    """With a version that was deleted to make room, its training data were forgotten: its labels counted as new
    again."""
    code, out, _ = run(store, capsys, "remove", "a")
    assert (code, out[:16]) == (0, "removed a: 3 MiB")
    assert not list(store.versions_dir.rglob("a/*")) and not list(store.versions_dir.glob(f"{removal.LEAVING}*"))
    assert (store.versions(), removed_versions(store)) == (("b", "c"), ("a",))
    assert lineage(store, "c") == ("c", "b", "a", "starter")
    assert trained_on(store, "c", 2) == {"of-a", "of-b", "of-c"}
    displayed: Any = json.loads(run(store, capsys, "show", "a")[1])
    assert (displayed["training"][0]["correction"], displayed["lineage"]) == ("of-a", ["a", "starter"])
    assert " a " not in run(store, capsys, "list")[1]
    listed = run(store, capsys, "list", "--removed")[1].splitlines()
    assert listed[-1].startswith("  a  from starter, 1 corrections, 2026-01-01T00:00:00+00:00  removed ")
    for words in (("activate", "a"), ("export", "a", "a.zip")):
        code, _, error = run(store, capsys, *words)
        assert (code, "its weights were removed" in error) == (2, True), error
    assert run(store, capsys, "remove", "a")[0] == 0, "the call of a killed one is repeated"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("c", "in use"),
        ("starter", "ships"),
        ("b", "--force"),
        ("none", "There is no version"),
        ("../starter", "There is no version"),
    ],
)
def test_what_is_needed_is_not_removed(
    store: ModelStore, capsys: pytest.CaptureFixture[str], name: str, why: str
) -> None:
    code, _, error = run(store, capsys, "remove", "a", name)
    assert (code, why in error) == (2, True), error
    assert store.versions() == ("a", "b", "c")
    store.activate("a", steps=[1])
    code, _, error = run(store, capsys, "remove", "c", "--force")
    assert (code, "is in use" in error) == (2, True), "for one step"


def test_the_weights_that_the_gate_compares_with_are_not_removed(
    store: ModelStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Small falls could add up again after the weights from which the trainings began were removed."""
    add(store, "first", "")
    add(store, "second", "first")
    for name in ("second", "c", "second"):
        store.activate(name)
    code, _, error = run(store, capsys, "remove", "first")
    assert (code, "origin" in error and "--force" in error) == (2, True), error
    assert run(store, capsys, "remove", "first", "--force")[0] == 0


def test_going_back_passes_over_what_was_removed(
    store: ModelStore, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Every rollback failed after a version in between was removed."""
    assert run(store, capsys, "remove", "b", "--force")[0] == 0
    assert store.go_back() == {1: "a", 2: "a"}
    assert "no longer exist: b" in caplog.text
    assert store.go_back() == {1: "starter", 2: "starter"}
    with pytest.raises(WeightsError, match="nothing to roll back to"):
        store.go_back()


def test_no_version_is_put_into_use_while_it_is_removed(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights in use were gone, because a version was looked up before its removal and put into use after it."""
    refused: list[WeightsError] = []

    def activate() -> None:
        try:
            ModelStore(store.model_dir).activate("a")
        except WeightsError as error:
            refused.append(error)

    thread = Thread(target=activate)
    write = removal.write_json

    def slowly(path: Path, content: Any) -> None:
        thread.start()
        thread.join(0.2)
        write(path, content)

    monkeypatch.setattr(removal, "write_json", slowly)
    remove_versions(store, ["a"])
    thread.join()
    assert (len(refused), store.active()[1]) == (1, "c")


def kill_before(name: str) -> None:
    """Kill this process when the removal calls a function."""

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    owner = removal.shutil if name == "rmtree" else Path if name == "rename" else removal
    setattr(owner, name, die)


def kill_after_renaming() -> None:
    """Kill this process when the removal has renamed a folder."""
    rename = Path.rename

    def renamed(source: Path, target: Path) -> None:
        rename(source, target)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(Path, "rename", renamed)  # noqa: B010


def half_removed(folder: Path) -> None:
    (folder / MODEL).unlink()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("arrange", "whole"),
    [
        pytest.param(lambda: kill_before("write_json"), True, id="writing the record"),
        pytest.param(lambda: kill_before("rename"), True, id="taking it out"),
        pytest.param(kill_after_renaming, False, id="after it is out"),
        pytest.param(lambda: setattr(removal.shutil, "rmtree", half_removed), False, id="deleting"),
    ],
)
def test_kill_9_leaves_a_version_whole_or_gone(store: ModelStore, arrange: Callable[[], None], whole: bool) -> None:
    def remove() -> None:
        arrange()
        remove_versions(store, ["a"])

    process = multiprocessing.get_context("fork").Process(target=remove)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert ("a" in store.versions()) == whole
    assert (store.versions_dir / "a" / MODEL).is_file() == whole
    assert ("removed" in show_version(store, "a")) == (not whole)
    assert trained_on(store, "c", 1) == {"of-a", "of-b", "of-c"}
    assert remove_versions(store, ["a"]) >= (3 << 20 if whole else 0)
    assert sorted(path.name for path in store.versions_dir.iterdir()) == ["b", "c"]
    assert trained_on(store, "c", 1) == {"of-a", "of-b", "of-c"}


def test_a_version_whose_record_is_damaged_is_not_removed(store: ModelStore) -> None:
    """An empty record was kept of it, and what its successors had been trained on was lost."""
    record = store.versions_dir / "a" / "version.json"
    record.write_text("{", encoding="utf-8")
    with pytest.raises(StorageError, match=r"version.json.*backup"):
        remove_versions(store, ["a"], force=True)
    assert (record.read_text(encoding="utf-8"), removed_versions(store)) == ("{", ())


def test_a_version_that_was_installed_again_is_removed_again(store: ModelStore) -> None:
    """The remains of a killed removal prevented the next removal of the same version."""
    (store.versions_dir / f"{removal.LEAVING}a" / "zip0").mkdir(parents=True)
    assert remove_versions(store, ["a"]) >= 3 << 20
    add(store, "a", "starter")
    assert ("removed" in show_version(store, "a"), removed_versions(store)) == (False, ())
    assert remove_versions(store, ["a"]) >= 3 << 20
    assert (store.versions(), removed_versions(store)) == (("b", "c"), ("a",))
