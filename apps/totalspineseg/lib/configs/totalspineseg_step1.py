"""Step 1 alone, as the host discovers it."""

from monailabel.interfaces.config import TaskConfig

from lib.infers.models import Step1Task
from lib.trainers.task import SpineTrainTask


class TotalSpineSegStep1(TaskConfig):  # type: ignore[misc]
    """Publishes the model ``totalspineseg_step1``."""

    def infer(self) -> Step1Task:
        """Return the inference task."""
        return Step1Task(self.kwargs["services"])

    def trainer(self) -> SpineTrainTask:
        """Return the training task."""
        return SpineTrainTask(self.kwargs["site"], steps=(1,))
