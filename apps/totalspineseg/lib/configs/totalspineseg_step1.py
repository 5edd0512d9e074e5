"""Step 1 alone, as the host discovers it."""

from monailabel.interfaces.config import TaskConfig

from lib.infers.models import Step1Task


class TotalSpineSegStep1(TaskConfig):  # type: ignore[misc]
    """Publishes the model ``totalspineseg_step1``."""

    def infer(self) -> Step1Task:
        """The inference task."""
        return Step1Task(self.kwargs["services"])

    def trainer(self) -> None:
        """None: it is trained through another model's task."""
        return
