"""Fine-tune one step's network from all of its weights, in this process, with nnU-Net's trainer."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch

from totalspineseg_server.errors import WeightsError
from totalspineseg_server.files import storage_errors
from totalspineseg_server.nnunet.checkpoint import load_checkpoint
from totalspineseg_server.nnunet.finetune_job import (
    FINETUNING,
    KEY,
    PREPROCESSED_DIR,
    STATES,
    Job,
    Stopped,
    StoredCase,
    training_dataset,
    training_plans,
)
from totalspineseg_server.nnunet.finetune_settings import FinetuneSettings
from totalspineseg_server.nnunet.model_folder import CONFIGURATION, ModelFolder
from totalspineseg_server.nnunet.plugin.spine_finetuner import SpineFinetuner
from totalspineseg_server.nnunet.runtimes import resolve_device
from totalspineseg_server.nnunet.training_log import Progress

__all__ = ["Finetuned", "Progress", "Stopped", "fine_tune"]


@dataclass(frozen=True)
class Finetuned:
    """The result of a finished training.

    Attributes:
        weights: Weights of the network, on the CPU.
        best: Best mean pseudo Dice.
        batch_size: Patches in a pass when the training ended.
        resumed_at: Iteration at which this process continued; 0 for a new training.
    """

    weights: dict[str, torch.Tensor]
    best: float
    batch_size: int
    resumed_at: int


def fine_tune(
    folder: ModelFolder,
    cases: Sequence[StoredCase],
    work: Path,
    settings: FinetuneSettings | None = None,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Finetuned:
    """Train a copy of a model on cases; if it is killed, the next call continues from the last stored state.

    Args:
        folder: The model to start from.
        cases: Corrections and replay, from ``store_cases`` for this folder and ``work``.
        work: Folder of this run: cases, states and logs.
        settings: Settings of the training.
        on_progress: Called after every iteration.
        should_stop: Called after every iteration.

    Returns:
        The weights after the last iteration.

    Raises:
        LabelError: There is no case.
        TrainingError: There is too little memory for one patch, or the loss was not finite for too long.
        StorageError: The state cannot be written; the previous one is still there.
        Stopped: ``should_stop`` returned True.
    """
    job = Job(folder, tuple(cases), work, settings or FinetuneSettings())
    with storage_errors(work), _nnunet_folders(work):
        job.write()
        state = stored_state(work, job.key)
        trainer = trainer_of(job)
        trainer.on_progress, trainer.should_stop = on_progress, should_stop
        if state is not None:
            trainer.load_checkpoint(str(state))
        first = trainer.iterations_done
        if first < job.settings.iterations:
            trainer.run_training()
    weights = {name: value.detach().cpu().clone() for name, value in trainer.network.state_dict().items()}
    return Finetuned(weights, trainer.best, trainer.pass_size, first)


def trainer_of(job: Job) -> SpineFinetuner:
    """Build the trainer of a job that has been written; nnU-Net's variables must point into its folder.

    Args:
        job: The job.
    """
    plans = training_plans(job.parent, job.settings.batch_size) | {"continue_training": False}
    # nnU-Net prints a line here.
    with redirect_stdout(io.StringIO()):
        return SpineFinetuner(
            plans, CONFIGURATION, "all", training_dataset(job.parent), resolve_device(job.settings.device)
        )


def stored_state(work: Path, key: str) -> Path | None:
    """Find the state of a training.

    Args:
        work: Folder of the training.
        key: See ``Job``.

    Returns:
        The checkpoint; None if there is none, if it belongs to another training, or if it cannot be read. The training
        then starts from its beginning.
    """
    for path in (work / name for name in STATES):
        try:
            if path.is_file() and load_checkpoint(path)["init_args"][FINETUNING][KEY] == key:
                return path
        except (WeightsError, KeyError, TypeError):
            continue
    return None


@contextmanager
def _nnunet_folders(work: Path) -> Iterator[None]:
    """Point nnU-Net's variables to a folder inside this block."""
    base = str(work / PREPROCESSED_DIR)
    wanted = {"nnUNet_preprocessed": base, "nnUNet_results": base}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
