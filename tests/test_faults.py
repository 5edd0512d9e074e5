"""Tests of what a training survives: kill -9 anywhere, bad labels, missing images, a full disk, two at once.

After each fault: every correction is still there, the last good model is served, and the next training works.
"""

import errno
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from test_trainers import scores_of
from totalspineseg_server.corrections.correction_store import Correction
from totalspineseg_server.errors import StorageError, TrainingError
from totalspineseg_server.nnunet import finetune_job, predictor
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.patches import Sample
from totalspineseg_server.nnunet.plugin.spine_finetuner import SpineFinetuner
from totalspineseg_server.nnunet.training_log import TrainingLog
from totalspineseg_server.registry import model_store as registry_store
from totalspineseg_server.registry.model_store import STARTER
from totalspineseg_server.training import candidates, judging, retraining
from totalspineseg_server.training.compare import SubjectScores
from totalspineseg_server.training.retraining import Retrained, retrain
from totalspineseg_server.training.runs import Reporter, is_running, only_one, state_of
from totalspineseg_server.training.site import Site
from training_site import correct, make_site, tiny_reference, tiny_replay, tiny_settings

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate passes without running networks, and no curves are drawn."""

    def score(cases: Iterable[Any], **_: Any) -> tuple[SubjectScores, ...]:
        return scores_of(0.1) if list(cases) else ()

    monkeypatch.setattr(judging, "score_models", score)
    monkeypatch.setattr(TrainingLog, "draw", lambda self: None)


def train(site: Site) -> Retrained:
    return retrain(site, tiny_settings(), replay=tiny_replay(), reference=tiny_reference)


def survived(site: Site, corrections: list[Correction], served: str = STARTER) -> Retrained:
    """Check what is promised after a fault; return how the next training ended."""
    assert list(site.corrections.all()) == corrections
    assert not is_running(site.training_dir)
    for step in (1, 2):
        choice = site.models.resolve(step)
        assert choice.name == served
        ModelFolder.open(choice.root, step=step).load_network()
    result = train(site)
    assert result.served
    assert site.models.active() == {1: result.version, 2: result.version}
    return result


def failed_with(site: Site) -> str:
    """What clients read about a training that failed."""
    state = state_of(site.training_dir)
    assert state is not None
    assert state.status == "failed"
    return state.message


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def killed(site: Site, arrange: Callable[[], None]) -> None:
    """Train in a separate process, which ``arrange`` prepares to be killed with SIGKILL."""

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
    """Kill the process when half a checkpoint is written."""
    original = torch.save
    left = [3]

    def save(content: Any, path: str) -> None:
        original(content, path)
        left[0] -= 1
        if left[0] == 0:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            kill_now()

    torch.save = save


def before_renaming() -> None:
    """Kill the process when the third checkpoint is written, but not renamed."""
    original, left = Path.replace, [3]

    def replace(path: Path, target: Path) -> Path:
        if target.name.startswith("checkpoint_"):
            left[0] -= 1
            if left[0] == 0:
                kill_now()
        return original(path, target)

    Path.replace = replace  # type: ignore[method-assign, assignment]


MOMENTS: dict[str, tuple[Callable[[], None], bool]] = {
    "storing cases": (lambda: on_call(finetune_job, "_write", 2), True),
    "preparing cases": (lambda: on_call(retraining, "prepare_cases", 1), False),
    "an iteration of step 1": (lambda: on_call(SpineFinetuner, "train_step", 3), True),
    "writing a checkpoint": (half_checkpoint, True),
    "renaming a checkpoint": (before_renaming, True),
    "an iteration of step 2": (lambda: on_call(SpineFinetuner, "train_step", 7), True),
    "judging": (lambda: on_call(judging, "judge", 1), True),
    "copying the version": (lambda: on_call(candidates.shutil, "copytree", 2), True),
    "before the version appears": (lambda: on_call(candidates, "write_record", 1), True),
    "between publishing and activating": (lambda: on_call(registry_store, "note", 1), True),
    "writing the pointer": (lambda: on_call(registry_store, "write_json", 1), True),
}
"""Moment -> how to be killed then, and whether the next training goes on with the same run."""


LONGEST_S = 2.0
"""About as long as one of these trainings takes on a quiet machine."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_9_costs_nothing(tmp_path: Path, moment: str) -> None:
    """A killed training left half a model in use, or began again from nothing."""
    site = make_site(tmp_path)
    corrections = list(site.corrections.all())
    arrange, resumes = MOMENTS[moment]
    killed(site, arrange)
    state = state_of(site.training_dir)
    assert state is None or state.status == "interrupted"
    begun = sorted(path.name for path in site.training_dir.iterdir() if path.is_dir())
    result = survived(site, corrections)
    if resumes:
        assert [result.run.name] == begun
    if moment in ("an iteration of step 1", "writing a checkpoint", "renaming a checkpoint"):
        assert "resumed at iteration" in (result.run / "step1" / "log.txt").read_text(encoding="utf-8")
    if moment == "an iteration of step 2":
        assert "resumed at iteration" in (result.run / "step2" / "log.txt").read_text(encoding="utf-8")
        assert "resumed" not in (result.run / "step1" / "log.txt").read_text(encoding="utf-8")
    whole = [(site.models.versions_dir / name / "version.json").is_file() for name in site.models.versions()]
    assert all(whole)
    assert whole


def test_kill_9_at_a_random_moment_costs_nothing(tmp_path: Path) -> None:
    """This finds moments that nobody thought of; the seconds are printed if it fails."""
    site = make_site(tmp_path)
    corrections = list(site.corrections.all())
    process = multiprocessing.get_context("fork").Process(target=train, args=(site,))
    seconds = float(np.random.default_rng().uniform(0, LONGEST_S))
    print(f"killed after {seconds:.3f} s")
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    # It may have ended before.
    (served,) = {site.models.resolve(step).name for step in (1, 2)}
    assert served == STARTER or (served,) == site.models.versions()
    survived(site, corrections, served)


def test_kill_9_while_candidates_are_removed_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a refused candidate was left, and no later training on the same corrections could begin."""
    site = make_site(tmp_path)
    corrections = list(site.corrections.all())

    remove = candidates.shutil.rmtree

    def half(folder: Path, **options: Any) -> None:
        if folder.name != candidates.CANDIDATE_DIR:
            remove(folder, **options)
            return
        next(folder.rglob("checkpoint_final.pth")).unlink()
        kill_now()

    with monkeypatch.context() as patch:
        patch.setattr(judging, "score_models", lambda cases, **_: scores_of(-0.2) if list(cases) else ())
        killed(site, lambda: setattr(candidates.shutil, "rmtree", half))
    state = state_of(site.training_dir)
    assert state is not None
    assert state.status == "refused"
    (refused,) = site.models.versions()
    result = survived(site, corrections)
    assert result.version != refused
    assert not list(site.training_dir.glob("*/step*/candidate"))


def test_kill_9_after_activating_does_not_undo_a_later_rollback(tmp_path: Path) -> None:
    """A version that somebody had rolled back was put into use again by the next training, without a word."""
    site = make_site(tmp_path)
    corrections = list(site.corrections.all())
    killed(site, lambda: on_call(Reporter, "end", 1))
    (version,) = site.models.versions()
    assert site.models.active() == {1: version, 2: version}
    site.models.go_back()
    result = train(site)
    assert (result.version, result.served) == (version, False)
    state = state_of(site.training_dir)
    assert state is not None
    assert (state.status, state.message) == ("kept", result.message)
    assert result.message.endswith(f"totalspineseg models activate {version}")
    assert survived(site, corrections).version != version


def test_a_candidate_that_is_gone_is_trained_again(tmp_path: Path) -> None:
    """A run whose finished first network was lost always ended with the same error."""
    site = make_site(tmp_path)
    corrections = list(site.corrections.all())
    killed(site, lambda: on_call(judging, "judge", 1))
    (lost,) = site.training_dir.glob("*/step1/candidate/**/checkpoint_final.pth")
    lost.unlink()
    survived(site, corrections)


def test_bad_labels_and_missing_images_are_left_out_by_name(tmp_path: Path) -> None:
    site = make_site(tmp_path, scans=4)
    corrections = list(site.corrections.all())
    by_image = {c.image: c for c in corrections}
    (site.corrections.path(by_image["sub-0"]) / "codes.nii.gz").write_bytes(b"\x1f\x8b half a file")
    (tmp_path / "studies" / "sub-1.nii.gz").unlink()
    image = tmp_path / "studies" / "sub-2.nii.gz"
    image.write_bytes((tmp_path / "studies" / "sub-3.nii.gz").read_bytes())
    result = survived(site, corrections)
    reasons = {case.name.split()[0]: case.reason for case in result.skipped}
    assert set(reasons) == {"sub-0", "sub-1", "sub-2"}
    assert "'sub-1'" in reasons["sub-1"]
    assert "'sub-2'" in reasons["sub-2"]
    assert "sub-0" in (result.run / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("fault", ["half a label", "no image"])
def test_only_bad_labels_stop_the_training_and_change_nothing(tmp_path: Path, fault: str) -> None:
    site = make_site(tmp_path)
    (correction,) = site.corrections.all()
    if fault == "no image":
        (tmp_path / "studies" / "sub-0.nii.gz").unlink()
    else:
        (site.corrections.path(correction) / "codes.nii.gz").write_bytes(b"\x1f\x8b half a file")
    with pytest.raises(TrainingError, match="usable correction"):
        train(site)
    assert "usable correction" in failed_with(site)
    another = correct(site, tmp_path, "sub-1", 1)
    survived(site, [correction, another])


def test_two_trainings_at_once_are_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    with only_one(site.training_dir):
        assert is_running(site.training_dir)
        with pytest.raises(TrainingError, match="already running"):
            train(site)
    survived(site, list(site.corrections.all()))


def test_a_disk_that_fills_while_publishing_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(tmp_path)
    corrections = list(site.corrections.all())
    with monkeypatch.context() as patch:
        patch.setattr(candidates.shutil, "copytree", full_disk)
        with pytest.raises(StorageError, match=r"disk .* full"):
            train(site)
    assert site.models.versions() == ()
    assert "is full" in failed_with(site)
    survived(site, corrections)


def test_a_disk_that_fills_while_training_keeps_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(tmp_path)
    corrections = list(site.corrections.all())
    original = torch.save
    left = [2]

    def fills(content: Any, path: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            Path(path).write_bytes(b"half")
            full_disk()
        original(content, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fills)
        with pytest.raises(StorageError, match="No space left"):
            train(site)
    result = survived(site, corrections)
    assert "resumed at iteration 2" in (result.run / "step1" / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("first", ["a state", "a line of the log"])
def test_a_disk_without_any_room_still_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, first: str
) -> None:
    """Logging that the disk was full failed, too, and hid the reason from clients and the command line."""
    site = make_site(tmp_path)
    corrections = list(site.corrections.all())
    once, iterations = SpineFinetuner.train_step, [0]

    with monkeypatch.context() as patch:

        def fills(trainer: SpineFinetuner, batch: Sample) -> dict[str, float]:
            iterations[0] += 1
            if iterations[0] == (3 if first == "a state" else 2):
                patch.setattr(tempfile, "mkstemp", full_disk)
                patch.setattr(TrainingLog, "say", full_disk)
            return once(trainer, batch)

        patch.setattr(SpineFinetuner, "train_step", fills)
        with pytest.raises(StorageError, match="disk space"):
            train(site)
    assert "disk space" in failed_with(site)
    assert "not in the log of run" in caplog.text
    survived(site, corrections)


def test_too_little_gpu_memory_ends_the_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(tmp_path)
    first = train(site)
    correct(site, tmp_path, "sub-1", 1)
    corrections = list(site.corrections.all())
    passes, left = SpineFinetuner._passes, [3]

    def short(trainer: SpineFinetuner, batch: Sample) -> float:
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return passes(trainer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SpineFinetuner, "_passes", short)
        with pytest.raises(TrainingError, match="other programs"):
            train(site)
    assert "one patch of step 1" in failed_with(site)
    result = survived(site, corrections, served=first.version)
    assert "resumed at iteration 3" in (result.run / "step1" / "log.txt").read_text(encoding="utf-8")


def test_too_little_memory_to_find_discs_leaves_no_correction_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A correction was skipped as if its label were bad, because another program used the GPU for a moment."""
    site = make_site(tmp_path, scans=2)
    corrections = list(site.corrections.all())
    tiles, left = predictor.sliding_logits, [1]

    def short(*arguments: Any, **options: Any) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return tiles(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(predictor, "sliding_logits", short)
        with pytest.raises(TrainingError, match=r"sub-\d .*memory"):
            train(site)
    assert "memory" in failed_with(site)
    result = survived(site, corrections)
    assert result.skipped == ()
