"""The marks where a reader should look, as the host discovers it."""

from monailabel.interfaces.config import TaskConfig

from lib.infers.review import ReviewTask


class TotalSpineSegReview(TaskConfig):  # type: ignore[misc]
    """Publishes the model ``totalspineseg_review``."""

    def infer(self) -> ReviewTask:
        """Return the inference task."""
        return ReviewTask(self.kwargs["services"])

    def trainer(self) -> None:
        """Return None: it is trained through another model's task."""
        return
