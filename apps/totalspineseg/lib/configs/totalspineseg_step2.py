"""Step 2 from a corrected step-1 label, as the host discovers it."""

from monailabel.interfaces.config import TaskConfig

from lib.infers.models import Step2Task
from lib.trainers.task import SpineTrainTask


class TotalSpineSegStep2(TaskConfig):  # type: ignore[misc]
    """Publishes the model ``totalspineseg_step2``."""

    def infer(self) -> Step2Task:
        """Return the inference task."""
        return Step2Task(self.kwargs["services"])

    def trainer(self) -> SpineTrainTask:
        """Return the training task."""
        return SpineTrainTask(self.kwargs["site"], steps=(2,))
