"""``totalspineseg models``: versions listed, shown, activated, rolled back, exported and imported."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lib.cli import main
from lib.nnunet.model_folder import ModelFolder
from lib.registry.records import VersionRecord, write_record
from lib.registry.store import ModelStore
from tiny_models import write_models


def publish(store: ModelStore, name: str, seed: int, *, passed: bool = True) -> None:
    record = VersionRecord(
        name=name,
        created="2026-01-01T00:00:00+00:00",
        steps=(1, 2),
        parents={"1": {"name": "starter", "version": "starter-0"}},
        models={},
        training=[{"correction": "c1", "image": "sub-1"}],
        gate={"publish": passed, "reason": "served" if passed else "not served: discs fell"},
    )
    with store.publish(name) as staging:
        write_models(staging, seed=seed)
        write_record(staging, record)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    made = ModelStore(tmp_path / "model")
    write_models(made.model_dir / "starter")
    publish(made, "trained-1", 1)
    publish(made, "trained-2", 2, passed=False)
    return made


def run(store: ModelStore, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["models", *words, "--data-dir", str(store.model_dir)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_list_and_show(store: ModelStore, capsys: pytest.CaptureFixture[str]) -> None:
    store.activate("trained-1", steps=[2])
    lines = run(store, capsys, "list")[1].splitlines()
    assert lines[0] == "* starter  in use for step 1"
    assert lines[1].startswith("* trained-1  in use for step 2  from starter, 1 corrections")
    assert lines[3].startswith("  trained-2")
    assert "not served: discs fell" in lines[4]
    shown: Any = json.loads(run(store, capsys, "show", "trained-1")[1])
    assert shown["training"] == [{"correction": "c1", "image": "sub-1"}]
    assert shown["lineage"] == ["trained-1", "starter"]


def test_activate_and_roll_back(store: ModelStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(store, capsys, "activate", "trained-1")[0] == 0
    assert store.active() == {1: "trained-1", 2: "trained-1"}
    code, _, error = run(store, capsys, "activate", "trained-2")
    assert (code, store.active()[1]) == (2, "trained-1")
    assert "not served: discs fell" in error
    assert run(store, capsys, "activate", "trained-2", "--force")[0] == 0
    assert store.active()[1] == "trained-2"
    assert "step 1: trained-1 is in use now" in run(store, capsys, "rollback")[1]
    assert "step 2: starter is in use now" in run(store, capsys, "rollback")[1]
    assert run(store, capsys, "rollback")[0] == 2


def test_a_version_survives_the_way_out_and_in(
    store: ModelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "out.zip"
    assert run(store, capsys, "export", "trained-1", str(archive))[0] == 0
    other = ModelStore(tmp_path / "elsewhere")
    assert run(other, capsys, "import", str(archive))[0] == 0
    assert other.versions() == ("trained-1",)
    assert other.active() == {}
    for step in (1, 2):
        before, after = (ModelFolder.open(s.versions_dir / "trained-1", step=step) for s in (store, other))
        assert before.digest == after.digest
        assert after.path.parent.name.startswith(f"Dataset10{step}_")
    shown: Any = json.loads(run(other, capsys, "show", "trained-1")[1])
    assert shown["gate"] is None
    assert shown["settings"]["imported"]["record"]["training"] == [{"correction": "c1", "image": "sub-1"}]
    code, _, error = run(other, capsys, "import", str(archive))
    assert (code, "new version name" in error) == (2, True)
    assert run(other, capsys, "import", str(archive), "--name", "again")[0] == 0


@pytest.mark.parametrize("kind", ["no zip", "no model"])
def test_other_files_are_refused(
    store: ModelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    archive = tmp_path / "bad.zip"
    archive.write_bytes(b"no zip at all")
    if kind == "no model":
        with zipfile.ZipFile(archive, "w") as content:
            content.writestr("plans.json", "{}")
    before = store.versions()
    code, _, error = run(store, capsys, "import", str(archive))
    assert code == 2
    assert "required" in error
    assert store.versions() == before
