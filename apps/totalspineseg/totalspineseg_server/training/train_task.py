"""Define the training tasks that clients start: both steps in turn, or one."""

import logging
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.tasks.train import TrainTask

from totalspineseg_server.processes import parent_is_gone
from totalspineseg_server.training import training_messages
from totalspineseg_server.training.retrain_settings import client_config, read_settings
from totalspineseg_server.training.runs import state_of
from totalspineseg_server.training.site import Site

logger = logging.getLogger(__name__)


class SpineTrainTask(TrainTask):  # type: ignore[misc]
    """The task that fine-tunes one or both networks. Constructing it reads no file and uses no device.

    Args:
        site: Studies, corrections and models.
        steps: Networks to train, in order.
    """

    def __init__(self, site: Site, steps: tuple[int, ...]) -> None:
        what = "both networks" if len(steps) > 1 else f"the step-{steps[0]} network"
        super().__init__(training_messages.DESCRIPTION.format(what=what))
        self._site = site
        self._steps = steps

    def config(self) -> dict[str, Any]:
        """Return the settings that clients show."""
        return client_config()

    def stats(self) -> dict[str, Any]:
        """Return the progress of the running training, else of the last one, of any task; empty before the first."""
        state = state_of(self._site.training_dir)
        if state is None:
            return {}
        hours, rest = divmod(round(state.seconds), 3600)
        # The keys are those of MONAI Label's own trainers. There is no total time, because 3D Slicer would then show no
        # progress.
        time = "current_time" if state.status == "running" else "total_time"
        return {
            "epoch": state.epoch,
            "total_epochs": state.total_epochs,
            time: f"{hours}:{rest // 60:02d}:{rest % 60:02d}",
            "best_metric": state.best_metric or 0.0,
            "status": state.status,
            "step": state.step,
            "run": state.run,
            "message": state.message,
        }

    def check(self, request: Mapping[str, Any]) -> None:
        """Check that a training can begin. If it failed later, in its own process, clients would not see the reason.

        Args:
            request: Settings, see ``config``.

        Raises:
            TrainingError: There is nothing to train on, a setting is wrong, or there is no such device.
            WeightsError: There are no weights to begin with.
            StorageError: The hold-out list is damaged or cannot be written.
        """
        from totalspineseg_server.training.material import start_of

        start_of(self._site, read_settings(request, self._steps))

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Train. MONAI Label runs this in a process of its own and kills it to stop; it also stops if the server ends.

        Args:
            request: Settings, see ``config``.
            datastore: Unused: training uses the history of accepted corrections.

        Returns:
            The result of the run.

        Raises:
            TrainingError: There is nothing to train on, another training is running, or a setting is wrong.
            StorageError: The disk is full, or permission is missing.
            Stopped: The server has ended; the state is stored.
        """
        from totalspineseg_server.training.retraining import (
            retrain,  # Import PyTorch and nnU-Net only here, so that a server that lists its tasks starts quickly.
        )

        # Log at once, because clients cannot show or stop a task that has logged nothing.
        logger.info("Training of step %s starts", " and ".join(map(str, self._steps)))
        result = retrain(self._site, read_settings(request, self._steps), should_stop=parent_is_gone)
        logger.info("version %s: %s", result.version, result.message)
        return {
            "run": result.run.name,
            "version": result.version,
            "published": result.report.publish,
            "served": result.served,
            "reason": result.message,
            "skipped": [{"case": case.name, "reason": case.reason} for case in result.skipped],
        }
