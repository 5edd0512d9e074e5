"""Report the progress of a retraining: lines in the run's log, and the state that clients show."""

import logging
import time
from pathlib import Path
from typing import Any

from totalspineseg_server.nnunet.finetune_job import Progress
from totalspineseg_server.nnunet.training_log import TrainingLog
from totalspineseg_server.training.retrain_settings import RetrainSettings
from totalspineseg_server.training.runs import ProgressFile, RunState, Status

logger = logging.getLogger(__name__)


class Reporter:
    """Writes the log and the state of one run.

    Args:
        run: The run's folder.
        settings: Settings of the run.
    """

    def __init__(self, run: Path, settings: RetrainSettings) -> None:
        self._run = run
        self._log = TrainingLog(run)
        self._progress = ProgressFile(run)
        self._steps, self._finetune = settings.steps, settings.finetune
        self._epochs = -(-settings.finetune.iterations // settings.finetune.epoch)
        self._epochs_done = 0
        self._best: float | None = None
        self._begun = time.monotonic()

    def say(self, text: str, **values: Any) -> None:
        """Write a line into the log, see ``TrainingLog.say``; a full disk does not end the training."""
        try:
            self._log.say(text, **values)
        except OSError as error:
            logger.warning("%s (not in the log of run %s: %s)", text, self._run.name, error)

    def tell(self, message: str, *, now: bool = True) -> None:
        """Report what the run is doing before or after training; if ``now`` is False, the newest report is written only
        now and then.

        Raises:
            StorageError: It cannot be written.
        """
        self._progress.write(self._state("running", message=message), now=now)

    def trained(self, progress: Progress) -> None:
        """Report the progress of a training.

        Raises:
            StorageError: It cannot be written.
        """
        done = progress.iteration == self._finetune.iterations
        epoch = self._epochs if done else progress.iteration // self._finetune.epoch
        self._epochs_done = self._steps.index(progress.step) * self._epochs + epoch
        self._best = None if progress.best != progress.best else round(progress.best, 4)
        self._progress.write(self._state("running", step=progress.step))

    def finished(self, step: int, best: float | None) -> None:
        """Report that a step is trained, perhaps by an earlier process."""
        self._epochs_done = (self._steps.index(step) + 1) * self._epochs
        self._best = None if best is None else round(best, 4)

    def end(self, status: Status, message: str) -> None:
        """Report how the run ended or paused, even on a full disk."""
        self._progress.write_last(self._state(status, message=message))

    def _state(self, status: Status, *, step: int = 0, message: str = "") -> RunState:
        return RunState(
            run=self._run.name,
            status=status,
            step=step,
            epoch=self._epochs_done,
            total_epochs=len(self._steps) * self._epochs,
            seconds=round(time.monotonic() - self._begun, 1),
            best_metric=self._best,
            message=message,
        )
