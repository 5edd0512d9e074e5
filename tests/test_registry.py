"""Tests of the weights in use: the pointer file, versions that appear whole, settings, and crashes in between."""

import errno
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from unittest.mock import Mock

import pytest

from totalspineseg_server import files, locks
from totalspineseg_server.errors import BusyError, StorageError, WeightsError
from totalspineseg_server.files import write_json
from totalspineseg_server.locks import locked
from totalspineseg_server.registry.activations import before_last, changes
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.registry.records import VersionRecord, lineage, trained_on, write_record

APP = Path(__file__).parents[1] / "apps" / "totalspineseg"


@pytest.fixture
def model_dir(tmp_path) -> Path:
    for name in ("starter", "versions/official-r20241005", "versions/official-r20251124", "versions/site-2"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        pytest.param("", "starter", id="nothing-said-nothing-active"),
        pytest.param("starter", "starter", id="starter"),
        pytest.param("official", "official-r20251124", id="newest-release"),
        pytest.param("site-2", "site-2", id="version"),
        pytest.param("  site-2 ", "site-2", id="spaces"),
    ],
)
def test_setting_chooses(model_dir, weights, name):
    assert ModelStore(model_dir, weights=weights).resolve(1).name == name


def test_setting_may_be_a_folder(model_dir, tmp_path):
    folder = tmp_path / "elsewhere" / "mine"
    folder.mkdir(parents=True)
    choice = ModelStore(model_dir, weights=str(folder)).resolve(2)
    assert (choice.name, choice.root) == ("mine", folder)


def test_setting_beats_the_pointer_and_the_pointer_beats_the_starter(model_dir):
    ModelStore(model_dir).activate("site-2")
    assert ModelStore(model_dir).resolve(1).name == "site-2"
    assert ModelStore(model_dir, weights="starter").resolve(1).name == "starter"


def test_a_step_can_be_activated_alone_and_taken_back(model_dir):
    store = ModelStore(model_dir)
    store.activate("official-r20251124")
    store.activate("site-2", steps=(2,))
    assert json.loads((model_dir / "active.json").read_text(encoding="utf-8")) == {
        "101": "official-r20251124",
        "102": "site-2",
    }
    assert [store.resolve(step).name for step in (1, 2)] == ["official-r20251124", "site-2"]
    store.activate("starter")
    assert store.active() == {1: "starter", 2: "starter"}


@pytest.mark.parametrize("name", ["none", "../starter", "", ".hidden", "a/b", "site-2/"])
def test_only_what_is_there_is_activated(model_dir, name):
    with pytest.raises(WeightsError, match="not installed"):
        ModelStore(model_dir).activate(name)
    assert not (model_dir / "active.json").exists()


@pytest.mark.parametrize("weights", ["none", "../none", "/no/such/folder"])
def test_unknown_setting_is_refused(model_dir, weights):
    with pytest.raises(WeightsError, match="'starter', 'official'"):
        ModelStore(model_dir, weights=weights).resolve(1)


def test_official_without_an_installation_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="official weights"):
        ModelStore(tmp_path, weights="official").resolve(1)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"101": 5}', '{"101": "../../etc"}'])
def test_damaged_pointer_is_an_error_not_a_silent_starter(model_dir, content):
    (model_dir / "active.json").write_text(content, encoding="utf-8")
    with pytest.raises(WeightsError, match="starter weights"):
        ModelStore(model_dir).resolve(1)


def test_pointer_to_a_removed_version_is_an_error(model_dir):
    ModelStore(model_dir).activate("site-2")
    (model_dir / "versions" / "site-2").rmdir()
    with pytest.raises(WeightsError, match="'site-2'"):
        ModelStore(model_dir).resolve(1)


def test_version_appears_whole(tmp_path):
    store = ModelStore(tmp_path)
    with store.publish("site-3") as staging:
        (staging / "a" / "b").mkdir(parents=True)
        (staging / "a" / "b" / "weights").write_text("w", encoding="utf-8")
        assert store.versions() == ()
    assert store.versions() == ("site-3",)
    assert (tmp_path / "versions" / "site-3" / "a" / "b" / "weights").read_text(encoding="utf-8") == "w"


def test_failed_version_leaves_nothing(tmp_path):
    store = ModelStore(tmp_path)
    with pytest.raises(RuntimeError, match="training failed"), store.publish("site-3") as staging:
        (staging / "weights").write_text("half", encoding="utf-8")
        raise RuntimeError("training failed")
    assert list((tmp_path / "versions").iterdir()) == []


def test_versions_are_never_overwritten(model_dir):
    (model_dir / "versions" / "site-2" / "old").touch()
    with pytest.raises(StorageError, match="'site-2' exists already"), ModelStore(model_dir).publish("site-2"):
        pass
    assert [p.name for p in (model_dir / "versions" / "site-2").iterdir()] == ["old"]


@pytest.mark.parametrize("name", ["", "..", "a/b", ".a", "starter", "official", "a" * 101, "a b"])
def test_version_names_are_checked(tmp_path, name):
    with pytest.raises(WeightsError, match="cannot be the name of a version"), ModelStore(tmp_path).publish(name):
        pass


def test_killed_writer_leaves_the_old_pointer_and_no_lock(model_dir):
    """A server that was killed while it published kept all others waiting, or left half a pointer."""
    store = ModelStore(model_dir)
    store.activate("site-2")
    code = (
        "import sys, os, signal, totalspineseg_server.files as f\n"
        "from totalspineseg_server.registry.model_store import ModelStore\n"
        "f.os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "ModelStore(sys.argv[1]).activate('starter')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(model_dir)], cwd=APP, check=False)
    assert done.returncode == -9
    assert store.active() == {1: "site-2", 2: "site-2"}
    store.activate("official-r20251124")
    assert store.resolve(1).name == "official-r20251124"


def test_a_half_written_change_does_not_swallow_the_next(model_dir):
    """After a power cut while the list of changes was written, a rollback went back too far."""
    store = ModelStore(model_dir)
    store.activate("site-2")
    with (model_dir / "activations.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"time": "2026')
    store.activate("official-r20251124")
    store.activate("starter")
    assert [change.after[1] for change in changes(model_dir)] == ["site-2", "official-r20251124", "starter"]
    assert store.go_back()[1] == "official-r20251124"


def test_an_earlier_version_chosen_by_name_is_not_a_rollback(model_dir):
    """A rollback went past the previous version, to the starter weights."""
    store = ModelStore(model_dir)
    for name in ("site-2", "official-r20251124", "site-2"):
        store.activate(name)
    assert [store.go_back()[1] for _ in range(3)] == ["official-r20251124", "site-2", "starter"]
    with pytest.raises(WeightsError, match="nothing to roll back to"):
        store.go_back()
    store.activate("site-2")
    store.activate("starter")
    assert store.go_back()[1] == "site-2"


def test_where_nothing_was_changed_yet_going_back_says_so(model_dir):
    """A rollback on a new installation ended in a traceback."""
    with pytest.raises(WeightsError, match="nothing to roll back to"):
        ModelStore(model_dir).go_back()


def test_going_back_forgets_no_change_when_a_crash_prevents_it(model_dir, monkeypatch):
    store = ModelStore(model_dir)
    store.activate("site-2")
    store.activate("official-r20251124")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("totalspineseg_server.registry.model_store.write_json", Mock(side_effect=KeyboardInterrupt))
        store.go_back()
    assert [store.go_back()[1] for _ in range(2)] == ["site-2", "starter"]


def test_a_version_takes_the_place_of_what_it_was_compared_with_alone(model_dir):
    """Weights that an operator had put into use during a training were replaced by a model that was never compared with
    them."""
    store = ModelStore(model_dir)
    compared = {step: store.resolve(step) for step in (1, 2)}
    store.activate("official-r20251124", steps=[2])
    assert store.activate_in_place_of(compared, {1: "site-2"}) == {2: "official-r20251124"}
    assert store.active() == {2: "official-r20251124"}
    store.activate("starter")
    assert store.activate_in_place_of(compared, {1: "site-2", 2: "site-2"}) == {}
    assert store.active() == {1: "site-2", 2: "site-2"}
    assert store.activate_in_place_of(compared, {1: "site-2"}) == {}, "it is in use already"
    assert len(changes(model_dir)) == 3


def test_weights_of_a_folder_are_not_the_version_of_the_same_name(model_dir, tmp_path):
    folder = tmp_path / "elsewhere" / "starter"
    folder.mkdir(parents=True)
    compared = {1: ModelStore(model_dir, weights=str(folder)).resolve(1)}
    assert ModelStore(model_dir).activate_in_place_of(compared, {1: "site-2"}) == {1: "starter"}


def test_a_network_has_seen_what_its_own_ancestors_learned_from(model_dir):
    """After a training of step 1 alone, step 2 counted as having seen what it had never seen."""
    store = ModelStore(model_dir)

    def trained(name: str, steps: list[int], parents: dict[int, str], **training: list[int]) -> None:
        with store.publish(name) as staging:
            cases = [{"correction": key, "taught": learned} for key, learned in training.items()]
            origin = {str(step): {"name": parent, "version": parent} for step, parent in parents.items()}
            write_record(staging, VersionRecord(name, "2026", steps, origin, {}, cases))

    trained("t1", [1], {1: "starter"}, a=[1])
    trained("t2", [1, 2], {1: "t1", 2: "starter"}, b=[1, 2], c=[1])
    assert trained_on(store, "t2", 1) == {"a", "b", "c"}
    assert trained_on(store, "t2", 2) == {"b"}
    assert lineage(store, "t2") == ("t2", "t1", "starter")


def test_two_publishers_lose_nothing(model_dir):
    """Two trainings that finished together each wrote the pointer, and one step went back."""
    store = ModelStore(model_dir)
    for _ in range(5):
        store.activate("starter")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda step: ModelStore(model_dir).activate("site-2", steps=(step,)), (1, 2)))
        assert store.active() == {1: "site-2", 2: "site-2"}


def test_going_back_loses_no_publication_at_the_same_time(model_dir, monkeypatch):
    """A version that was published during a rollback was replaced by an earlier one."""
    store = ModelStore(model_dir)
    store.activate("site-2")
    publication = Thread(target=lambda: ModelStore(model_dir).activate("official-r20251124"))

    def looked(*found):
        publication.start()
        publication.join(0.2)
        return before_last(*found)

    monkeypatch.setattr("totalspineseg_server.registry.model_store.before_last", looked)
    assert store.go_back()[1] == "starter"
    publication.join()
    assert store.active()[1] == "official-r20251124"
    assert [change.after[1] for change in changes(model_dir)] == ["site-2", "starter", "official-r20251124"]


def test_leftovers_of_killed_processes_go_after_a_day(tmp_path):
    versions = tmp_path / "versions"
    old, new = versions / ".staging-old", versions / ".staging-new"
    for leftover in (old, new):
        leftover.mkdir(parents=True)
    long_ago = time.time() - 2 * files.DAY_S
    os.utime(old, (long_ago, long_ago))
    with ModelStore(tmp_path).publish("site-3"):
        pass
    assert not old.exists()
    assert new.exists()
    assert ModelStore(tmp_path).versions() == ("site-3",)


@pytest.mark.parametrize(("number", "match"), [(errno.ENOSPC, "disk .* is full"), (errno.EACCES, "Cannot write")])
def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch, number, match):
    write_json(tmp_path / "a.json", {"old": 1})

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(StorageError, match=match):
        write_json(tmp_path / "a.json", {"new": 1})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_nobody_waits_forever_for_a_folder_that_another_process_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that hung while it held the models' folder stopped every later training without a word."""
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.1)
    with locked(tmp_path):
        with pytest.raises(BusyError, match=r"0.1 s"), locked(tmp_path):
            pass
        with pytest.raises(BusyError, match=r"over 0.2 s"), locked(tmp_path, seconds=0.2):
            pass
    with locked(tmp_path):
        pass


def test_versions_published_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    """Cleaning up failed on a folder that another process renamed, and a finished training could not be published."""
    store, count = ModelStore(tmp_path), 40

    def publish(thread: int) -> None:
        for number in range(count):
            with store.publish(f"site-{thread}-{number}") as folder:
                (folder / "version.json").write_text("{}", encoding="utf-8")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(publish, range(4)))
    assert len(store.versions()) == 4 * count


def test_of_two_of_one_name_at_the_same_time_one_is_refused(tmp_path: Path) -> None:
    """The second publisher was told that the folder cannot be written and to check its permissions."""
    store = ModelStore(tmp_path)
    with pytest.raises(StorageError, match=r"'site-3' exists already.*another name"), store.publish("site-3") as late:
        (late / "a").write_text("late", encoding="utf-8")
        with store.publish("site-3") as first:
            (first / "a").write_text("first", encoding="utf-8")
    assert (store.versions_dir / "site-3" / "a").read_text(encoding="utf-8") == "first"


def test_leftovers_that_others_rename_at_the_same_time_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gone", "old"):
        (tmp_path / f"{files.PARTIAL_PREFIX}{name}").mkdir()
        os.utime(tmp_path / f"{files.PARTIAL_PREFIX}{name}", (0, 0))
    stat = Path.stat

    def renamed(path: Path, **options: bool) -> os.stat_result:
        if path.name.endswith("gone"):
            raise FileNotFoundError(path)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", renamed)
    files.remove_leftovers(tmp_path)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == [f"{files.PARTIAL_PREFIX}gone"]
