"""Fine-tuning one step's network from the active weights, head included, for a stated number of iterations."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lib.nnunet.cases import TrainingCase
from lib.nnunet.finetune_run import Finetuned, Progress, Run, Stopped
from lib.nnunet.finetune_settings import FinetuneSettings
from lib.nnunet.model_folder import ModelFolder
from lib.nnunet.parallel import fine_tune_together

__all__ = ["Finetuned", "Progress", "Stopped", "fine_tune"]


def fine_tune(
    folder: ModelFolder,
    cases: Sequence[TrainingCase],
    work: Path,
    settings: FinetuneSettings | None = None,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Finetuned:
    """Train a copy of a model on cases; killed at any moment, it goes on from its last stored state.

    With ``settings.gpus`` above 1 as many processes each take a part of every batch, and the gradient is their sum. The
    loss is one of passes (its Dice part is taken over the patches of a pass), and no pass spans two devices: the
    weights become those of one device that takes passes of such a part. The state fits any number of devices.

    Args:
        folder: The model to start from.
        cases: Corrections and replay, prepared for this folder. Not modified.
        work: Folder of this run: state and logs.
        settings: How.
        on_progress: Told after every iteration.
        should_stop: Asked after every iteration.

    Returns:
        The weights after the last iteration.

    Raises:
        LabelError: There is no case.
        TrainingError: Memory does not suffice for one patch, the loss is not finite for long, or one of several
            processes ended.
        StorageError: The state cannot be written; the one before is still there.
        Stopped: ``should_stop`` said so.
    """
    settings = settings or FinetuneSettings()
    if settings.gpus > 1:
        return fine_tune_together(folder, cases, work, settings, on_progress=on_progress, should_stop=should_stop)
    return Run(folder, cases, work, settings).go(on_progress, should_stop)
