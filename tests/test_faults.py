"""What a training survives: kill -9 anywhere, bad labels, missing images, a full disk, two at once.

After each fault: every correction is still there, the last good model is served, and the next training works.
"""

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from lib import volume_io
from lib.errors import StorageError, TrainingError
from lib.gate.compare import SubjectScores
from lib.nnunet import finetune_run, training_state
from lib.nnunet.model_folder import ModelFolder
from lib.nnunet.training_log import TrainingLog
from lib.registry import store as registry_store
from lib.registry.store import STARTER
from lib.trainers import retrain as retraining
from lib.trainers.retrain import Retrained, retrain
from lib.trainers.runs import is_running, only_one, state_of
from lib.trainers.site import Site
from test_trainers import scores_of
from training_site import make_site, tiny_reference, tiny_replay, tiny_settings


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate passes without running networks, and no curves are drawn."""

    def score(cases: Iterable[Any], **_: Any) -> tuple[SubjectScores, ...]:
        return scores_of(0.1) if list(cases) else ()

    monkeypatch.setattr(retraining, "score_models", score)
    monkeypatch.setattr(TrainingLog, "draw", lambda self: None)


def train(site: Site) -> Retrained:
    return retrain(site, tiny_settings(), replay=tiny_replay(), reference=tiny_reference)


def killed(site: Site, arrange: Callable[[], None]) -> None:
    """Train in a process of its own, which ``arrange`` prepares to be killed with SIGKILL."""

    def run() -> None:
        arrange()
        train(site)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, "the fault did not happen"


def kill_now(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(target: Any, name: str, number: int) -> None:
    """Kill this process at the n-th call of a function, before it does anything."""
    original = getattr(target, name)
    left = [number]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            kill_now()
        return original(*args, **kwargs)

    setattr(target, name, wrapped)


def half_checkpoint() -> None:
    """Be killed with half a checkpoint written."""
    original = training_state.torch.save
    left = [3]

    def save(content: Any, path: Path) -> None:
        original(content, path)
        left[0] -= 1
        if left[0] == 0:
            path.write_bytes(path.read_bytes()[:1000])
            kill_now()

    training_state.torch.save = save


MOMENTS: dict[str, tuple[Callable[[], None], bool]] = {
    "preparing cases": (lambda: on_call(retraining, "prepare_cases", 1), False),
    "an iteration of step 1": (lambda: on_call(finetune_run.Run, "_train_once", 3), True),
    "writing a checkpoint": (half_checkpoint, True),
    "renaming a checkpoint": (lambda: on_call(volume_io.os, "fsync", 12), True),
    "an iteration of step 2": (lambda: on_call(finetune_run.Run, "_train_once", 7), True),
    "judging": (lambda: on_call(retraining, "judge", 1), True),
    "copying the version": (lambda: on_call(retraining.shutil, "copytree", 2), True),
    "before the version appears": (lambda: on_call(retraining, "write_record", 1), True),
    "between publishing and activating": (lambda: on_call(registry_store, "note", 1), True),
    "writing the pointer": (lambda: on_call(registry_store, "write_json", 1), True),
}
"""Moment -> how to be killed then, and whether the next training goes on with the same run."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_9_costs_nothing(tmp_path: Path, moment: str) -> None:
    """A trainer that was killed left half a model in service, or began again from nothing."""
    site = make_site(tmp_path)
    corrections = list(site.corrections.all())
    arrange, resumes = MOMENTS[moment]
    killed(site, arrange)
    assert list(site.corrections.all()) == corrections
    assert not is_running(site.training_dir)
    state = state_of(site.training_dir)
    assert state is None or state.status == "interrupted"
    for step in (1, 2):
        choice = site.models.resolve(step)
        assert choice.name == STARTER
        ModelFolder.open(choice.root, step=step).load_network()
    begun = sorted(path.name for path in site.training_dir.iterdir() if path.is_dir())
    result = train(site)
    assert result.report.publish
    assert site.models.active() == {1: result.version, 2: result.version}
    if resumes:
        assert [result.run.name] == begun
    if moment == "an iteration of step 2":
        assert "resumed at iteration" in (result.run / "step2" / "log.txt").read_text()
        assert "resumed" not in (result.run / "step1" / "log.txt").read_text()
    assert not list(site.models.versions_dir.glob("*.partial*"))


def test_bad_labels_and_missing_images_are_left_out_by_name(tmp_path: Path) -> None:
    site = make_site(tmp_path, scans=4)
    by_image = {c.image: c for c in site.corrections.all()}
    (site.corrections.path(by_image["sub-0"]) / "codes.nii.gz").write_bytes(b"\x1f\x8b half a file")
    (tmp_path / "studies" / "sub-1.nii.gz").unlink()
    image = tmp_path / "studies" / "sub-2.nii.gz"
    image.write_bytes((tmp_path / "studies" / "sub-3.nii.gz").read_bytes())
    result = train(site)
    assert result.report.publish
    reasons = {case.name.split()[0]: case.reason for case in result.skipped}
    assert set(reasons) == {"sub-0", "sub-1", "sub-2"}
    assert "got none named 'sub-1'" in reasons["sub-1"]
    assert "another file under the name 'sub-2'" in reasons["sub-2"]
    assert "sub-0" in (result.run / "log.txt").read_text()
    assert len(list(site.corrections.all())) == 4


def test_only_bad_labels_stop_the_training_and_change_nothing(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    (correction,) = site.corrections.all()
    (site.corrections.path(correction) / "codes.nii.gz").write_bytes(b"\x1f\x8b half a file")
    with pytest.raises(TrainingError, match="at least one usable correction"):
        train(site)
    assert site.models.active() == {}
    state = state_of(site.training_dir)
    assert state is not None
    assert state.status == "failed"


def test_two_trainings_at_once_are_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    with only_one(site.training_dir):
        assert is_running(site.training_dir)
        with pytest.raises(TrainingError, match="no other training"):
            train(site)
    assert not is_running(site.training_dir)
    assert train(site).report.publish


def test_a_disk_that_fills_while_publishing_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(retraining.shutil, "copytree", full)
        with pytest.raises(StorageError, match="full disk"):
            train(site)
    assert site.models.versions() == ()
    assert site.models.resolve(1).name == STARTER
    state = state_of(site.training_dir)
    assert state is not None
    assert (state.status, "full disk" in state.message) == ("failed", True)
    assert train(site).report.publish


def test_a_disk_that_fills_while_training_keeps_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(tmp_path)
    original = training_state.torch.save
    left = [2]

    def fills(content: Any, path: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(content, path)

    with monkeypatch.context() as patch:
        patch.setattr(training_state.torch, "save", fills)
        with pytest.raises(StorageError, match="No space left"):
            train(site)
    result = train(site)
    assert result.report.publish
    assert "resumed at iteration 2" in (result.run / "step1" / "log.txt").read_text()
