"""Tests of finding the official release in use, and that two releases are never mixed."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tiny_models import write_model_folder, write_models
from totalspineseg_server.cli import main
from totalspineseg_server.errors import WeightsError
from totalspineseg_server.nnunet.networks import Networks
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.registry.records import VersionRecord, write_record
from totalspineseg_server.registry.registry_messages import STARTER_WARNING
from totalspineseg_server.registry.releases import (
    NEWEST,
    RELEASES,
    release_of,
    require_one_release,
    warning_of,
    weights_text,
)

OLDER, NEWER = RELEASES


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    made = ModelStore(tmp_path / "model")
    for name in (f"official-{OLDER}", f"official-{NEWER}", "official-r20241005", "official-r20991231"):
        write_models(made.versions_dir / name)
    return made


def train(
    store: ModelStore,
    name: str,
    parents: dict[int, str],
    releases: dict[str, str] | None = None,
    corrections: Sequence[str] = (),
) -> None:
    """Publish a version that was trained from some versions."""
    origin = {str(step): {"name": parent, "version": ""} for step, parent in parents.items()}
    with store.publish(name) as staging:
        for step in parents:
            write_model_folder(staging, step, trainer="nnUNetTrainer")
        cases = [{"image": f"image of {one}", "correction": one} for one in corrections]
        record = VersionRecord(name, "2026", tuple(parents), origin, {}, cases, releases=releases or {})
        write_record(staging, record)


def test_release_of_what_was_trained_from_it(store: ModelStore) -> None:
    train(store, "site-1", {1: f"official-{OLDER}", 2: f"official-{OLDER}"})
    train(store, "site-2", {1: "site-1"})
    train(store, "elsewhere", {1: "site-9", 2: "site-9"}, {"1": NEWER})
    assert [release_of(store, "site-2", step) for step in (1, 2)] == [OLDER, ""]
    assert [release_of(store, "elsewhere", step) for step in (1, 2)] == [NEWER, ""]
    assert release_of(store, "starter", 1) == ""


def test_steps_of_two_releases_are_refused_by_name(store: ModelStore, capsys: pytest.CaptureFixture[str]) -> None:
    """A step 1 that was trained from one release ran with the step 2 of another, a pair that was never judged."""
    train(store, "site-1", {1: f"official-{OLDER}"})
    store.activate(f"official-{NEWER}")
    before = store.active()
    assert main(["models", "activate", "site-1", "--data-dir", str(store.model_dir)]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in (OLDER, NEWER, "site-1", f"official-{NEWER}"))
    assert store.active() == before
    store.activate("site-1", steps=[1])
    with pytest.raises(WeightsError, match="different releases"):
        Networks(store, device="cpu").folder(1)


def test_an_imported_zip_states_its_release(store: ModelStore, tmp_path: Path) -> None:
    """A single step from ``models import`` ran with the other step of another release."""
    write_model_folder(tmp_path / "old", 1, seed=4)
    archive = shutil.make_archive(str(tmp_path / f"Dataset101_TotalSpineSeg_step1_{OLDER}"), "zip", tmp_path / "old")
    assert main(["models", "import", archive, "--name", "mine", "--data-dir", str(store.model_dir)]) == 0
    assert release_of(store, "mine", 1) == OLDER
    out = str(tmp_path / "out.zip")
    assert main(["models", "export", "mine", out, "--data-dir", str(store.model_dir)]) == 0
    other = ["--data-dir", str(tmp_path / "other")]
    assert main(["models", "import", out, *other]) == 0
    assert release_of(ModelStore(tmp_path / "other"), "mine", 1) == OLDER, "its record travels with it"


@pytest.mark.parametrize(
    ("versions", "warns"),
    [
        (("starter",), True),
        (("official-r20251124-1a2b3c4d", "starter-1a2b3c4d"), True),
        (("starter-1a2b3c4d@openvino-2026.4.1",), True),
        (("starter-two-1a2b3c4d", "site-1"), False),
        ((), False),
    ],
)
def test_the_starter_weights_are_known_by_their_version(
    store: ModelStore, versions: tuple[str, ...], warns: bool
) -> None:
    assert warning_of(store, versions) == (STARTER_WARNING if warns else "")


@pytest.mark.parametrize("ending", ["", "-1a2b3c4d", "-1a2b3c4d@openvino-2026.4.1"])
def test_what_was_trained_from_the_starter_weights_says_so(store: ModelStore, ending: str) -> None:
    """After one training, nothing warned anymore that the weights know only synthetic spines."""
    train(store, "site-1", {1: "starter", 2: "starter"}, corrections=("a", "b"))
    train(store, "site-1a2b3c4d", {2: "site-1"}, corrections=("b", "c"))
    train(store, "other", {1: f"official-{OLDER}", 2: f"official-{OLDER}"}, corrections=("d",))
    warning = warning_of(store, [f"site-1a2b3c4d{ending}"])
    assert all(word in warning for word in ("'site-1a2b3c4d'", "starter", "3 corrected scans", "not for patients"))
    assert warning in weights_text(store, {1: "site-1a2b3c4d", 2: "site-1a2b3c4d"})
    assert warning_of(store, [f"other{ending}"]) == ""


def test_a_release_that_is_too_old_is_refused_by_name(store: ModelStore) -> None:
    for name in ("official-r20241005", f"official-{OLDER}", "official-r20991231"):
        if name == "official-r20241005":
            with pytest.raises(WeightsError, match=f"r20241005 is too old: .*{OLDER}.*{NEWER}"):
                require_one_release(store, dict.fromkeys((1, 2), name))
        else:
            require_one_release(store, dict.fromkeys((1, 2), name))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param(f"official-{OLDER}", (OLDER, f"supports the newer {NEWER}"), id="older"),
        pytest.param(f"official-{NEWER}", (NEWER, "the newest"), id="newest"),
        pytest.param("official-r20991231", ("r20991231", f"made for {NEWEST}"), id="newer-than-the-software"),
        pytest.param("starter", ("starter", "synthetic"), id="starter"),
    ],
)
def test_clients_read_which_release_runs(store: ModelStore, name: str, words: tuple[str, ...]) -> None:
    text = weights_text(store, {1: name, 2: name})
    assert all(word in text for word in words)
    assert ("official release" in text) == (name != "starter")
