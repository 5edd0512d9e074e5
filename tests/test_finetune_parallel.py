"""Fine-tuning shared by two processes: the weights of one, stops, kills, too little memory.

On the CPU; on GPUs only the gradients travel otherwise (NCCL).
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
import torch

from lib.errors import StorageError, TrainingError
from lib.nnunet import parallel
from lib.nnunet.cases import LabeledScan, Origin, TrainingCase, prepare_case
from lib.nnunet.finetune import Finetuned, Progress, Stopped, fine_tune
from lib.nnunet.finetune_run import Run
from lib.nnunet.finetune_settings import FinetuneSettings
from lib.nnunet.model_folder import ModelFolder
from lib.nnunet.runtimes import resolve_devices
from lib.nnunet.team import Team
from lib.nnunet.training_log import TrainingLog
from tiny_models import write_model_folder
from training_site import SPACING_MM, tiny_scan

pytestmark = pytest.mark.slow

TWO = FinetuneSettings(
    iterations=6,
    batch_size=4,
    learning_rate=0.01,
    warmup=2,
    epoch=3,
    validation_patches=1,
    checkpoint_every=2,
    device="cpu",
    gpus=2,
)
LOG = "log.txt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder.open(write_model_folder(tmp_path_factory.mktemp("model"), 2, spacing=SPACING_MM))


@pytest.fixture(scope="module")
def case(folder: ModelFolder) -> TrainingCase:
    return prepare_case(LabeledScan("case-1", "sub-1", Origin.CORRECTION, *tiny_scan(1)), folder)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingLog, "draw", lambda self: None)


Children = Callable[[], list[psutil.Process]]


@pytest.fixture
def children() -> Children:
    """Return what lists the processes a test started: the server that other tests share is a child, too."""
    before = psutil.Process().children()
    return lambda: [child for child in psutil.Process().children() if child not in before]


def never() -> bool:
    return False


def alone(
    folder: ModelFolder,
    case: TrainingCase,
    work: Path,
    passes: int,
    stop: Callable[[], bool] = never,
    settings: FinetuneSettings = TWO,
) -> Finetuned:
    """Train in one process whose passes are those of two."""
    run = Run(folder, [case], work, replace(settings, gpus=1))
    run.batch_size = passes
    return run.go(lambda _: None, stop)


def differences(one: Finetuned, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([(one.weights[name] - value).abs().flatten() for name, value in weights.items()])


def kill(process: psutil.Process | BaseProcess) -> None:
    os.kill(process.pid or 0, signal.SIGKILL)


def test_one_then_two_of_which_one_is_killed_then_one_give_the_weights_of_one(
    folder: ModelFolder, case: TrainingCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: Children
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "not-the-loopback")
    straight = alone(folder, case, tmp_path / "straight", 2)
    assert differences(straight, folder.load_network().state_dict()).max() > 0.01
    work = tmp_path / "changing"
    with pytest.raises(Stopped):
        alone(folder, case, work, 2, lambda: True)
    told: list[int] = []

    def kill_the_second(progress: Progress) -> None:
        told.append(progress.iteration)
        assert not list(work.rglob("*.npy"))
        ends = [end for child in children() for end in child.net_connections("inet")]
        assert {end.laddr.ip for end in ends} == {"127.0.0.1"}
        if progress.iteration == 4:
            kill(children()[1])

    with pytest.raises(TrainingError, match=r"signal 9"):
        fine_tune(folder, [case], work, TWO, on_progress=kill_the_second)
    assert told == [2, 3, 4]
    assert not children()
    assert not (work / parallel.SHARED_DIR).exists()
    resumed = alone(folder, case, work, 2)
    assert resumed.resumed_at == 4
    assert differences(resumed, straight.weights).max() < 1e-5
    assert resumed.best == pytest.approx(straight.best, abs=1e-4)
    text = (work / LOG).read_text()
    assert text.count("resumed at iteration 1 of 6 on cpu, cpu") == text.count("iteration 3 of 6, loss") == 1


SHORT = """
import torch
from lib.nnunet.finetune_run import Run
from lib.nnunet.parallel import work

gradient = Run._gradient
def short(run, batch):
    if run.team.rank == 1 and run._pass_size > 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return gradient(run, batch)
Run._gradient = short
work()
"""
"""The second process has memory for one patch only."""


def test_one_without_memory_makes_the_passes_of_both_smaller_and_a_stop_ends_both(
    folder: ModelFolder, case: TrainingCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: Children
) -> None:
    """A stop ends both at the same iteration, and what they computed together is what one computes alone."""
    monkeypatch.setattr(parallel, "PROGRAM", SHORT)
    answers, work, seldom = iter([False, True]), tmp_path / "two", replace(TWO, checkpoint_every=6)
    with pytest.raises(Stopped, match="iteration 2 of 6"):
        fine_tune(folder, [case], work, seldom, should_stop=lambda: next(answers))
    assert not children()
    text = (work / LOG).read_text()
    assert text.count("going on with passes of 1") == text.count("stopped at iteration 2") == 1
    resumed = alone(folder, case, work, 1, settings=seldom)
    assert (resumed.resumed_at, resumed.batch_size) == (2, 1)
    # The order of the sums differs, which Adam shows where a gradient is almost nothing.
    straight = alone(folder, case, tmp_path / "one", 1)
    assert differences(resumed, straight.weights).mean() < 1e-4
    assert resumed.best == pytest.approx(straight.best, abs=1e-3)


class Forgetful(Team):
    """The other process has read nothing."""

    def all_have(self, value: int) -> bool:
        return value == 0


def test_processes_that_read_different_states_do_not_train(
    folder: ModelFolder, case: TrainingCase, tmp_path: Path
) -> None:
    Run(folder, [case], tmp_path, TWO, Forgetful(0, 2))
    with pytest.raises(Stopped):
        alone(folder, case, tmp_path, 2, lambda: True)
    with pytest.raises(TrainingError, match="all 2 processes"):
        Run(folder, [case], tmp_path, TWO, Forgetful(0, 2))


def wait_for(what: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_no_process_outlives_a_killed_caller(folder: ModelFolder, case: TrainingCase, tmp_path: Path) -> None:
    """The host stops a training by SIGKILL."""
    endless = replace(TWO, iterations=100_000, checkpoint_every=1)
    caller = multiprocessing.get_context("fork").Process(target=fine_tune, args=(folder, [case], tmp_path, endless))
    caller.start()
    try:
        wait_for(lambda: (tmp_path / "state.pth").is_file(), 120)
        processes = psutil.Process(caller.pid).children()
        assert len(processes) == 2
    finally:
        kill(caller)
        caller.join()
    assert not psutil.wait_procs(processes, timeout=10)[1]


SPEAKING = """
import os, sys, time
os.write(int(sys.argv[3]), b'{{"error": "{error}", "message": "the disk is full"}}\\n')
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        (SPEAKING.format(error="StorageError"), StorageError, "^the disk is full$"),
        (SPEAKING.format(error="KeyError"), TrainingError, r"KeyError: the disk is full"),
        (
            "import sys; sys.exit(3)",
            TrainingError,
            r"exit code 3.*processes\.txt",
        ),
    ],
    ids=["our error", "another error", "exit"],
)
def test_a_failed_process_says_why(
    folder: ModelFolder,
    case: TrainingCase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    error: type[Exception],
    message: str,
    children: Children,
) -> None:
    monkeypatch.setattr(parallel, "PROGRAM", program)
    with pytest.raises(error, match=message):
        fine_tune(folder, [case], tmp_path, TWO)
    assert not children()


def test_a_batch_is_shared_out_whole() -> None:
    for size in (1, 2, 3, 5):
        shares = [Team(rank, size).share(5) for rank in range(size)]
        assert [k for share in shares for k in share] == [0, 1, 2, 3, 4]
        assert all(shares)


@pytest.mark.parametrize(
    ("device", "found", "message"),
    [
        ("auto", 0, "no GPU"),
        ("cuda", 1, "at most 1"),
        ("cuda:1", 4, "'cuda'"),
    ],
)
def test_too_few_gpus_are_told(device: str, found: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(ValueError, match=message):
        resolve_devices(device, 2)
    assert len({resolve_devices("cpu", 2)}) == 1


def test_the_patches_of_a_batch_are_those_of_one_process_and_differ(
    folder: ModelFolder, case: TrainingCase, tmp_path: Path
) -> None:
    whole = Run(folder, [case], tmp_path, TWO)._batch()
    parts = [Run(folder, [case], tmp_path, TWO, Forgetful(rank, 2))._batch() for rank in range(2)]
    assert torch.equal(torch.cat([part.channels for part in parts]), whole.channels)
    assert torch.equal(torch.cat([part.target for part in parts]), whole.target)
    assert len(whole.channels[:, 0].flatten(1).unique(dim=0)) == 4
    later = Run(folder, [case], tmp_path, TWO)
    later.iteration = 1
    assert len(torch.cat([whole.target, later._batch().target]).flatten(1).unique(dim=0)) == 8


def test_several_gpus_are_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert list(map(str, resolve_devices("auto", 2))) == ["cuda:0", "cuda:1"]
    assert list(map(str, resolve_devices("cuda:3", 1))) == ["cuda:3"]


def test_more_gpus_than_patches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size"):
        FinetuneSettings(batch_size=2, gpus=3)
