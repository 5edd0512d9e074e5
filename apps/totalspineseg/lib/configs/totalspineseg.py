"""The finished result, as the host discovers it."""

from monailabel.interfaces.config import TaskConfig

from lib.infers.models import FullTask
from lib.trainers.task import SpineTrainTask


class TotalSpineSeg(TaskConfig):  # type: ignore[misc]
    """Publishes the model ``totalspineseg``."""

    def infer(self) -> FullTask:
        """Return the inference task."""
        return FullTask(self.kwargs["services"])

    def trainer(self) -> SpineTrainTask:
        """Return the training task."""
        return SpineTrainTask(self.kwargs["site"], steps=(1, 2))
