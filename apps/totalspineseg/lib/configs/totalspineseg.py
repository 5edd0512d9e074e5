"""The finished result, as the host discovers it."""

from monailabel.interfaces.config import TaskConfig

from lib.infers.models import FullTask


class TotalSpineSeg(TaskConfig):  # type: ignore[misc]
    """Publishes the model ``totalspineseg``."""

    def infer(self) -> FullTask:
        """The inference task."""
        return FullTask(self.kwargs["services"])

    def trainer(self) -> None:
        """None: it is trained through another model's task."""
        return
