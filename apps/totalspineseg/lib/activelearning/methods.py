"""Scoring methods: what a client can have computed in the background for all images."""

from collections.abc import Callable, Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod

from lib.activelearning.rounds import round_over, unfinished_first

NAME = "scoring"


class ImageScoring(ScoringMethod):  # type: ignore[misc]
    """A scoring method that scores the images without a score.

    Args:
        description: What the images are scored by.
        fill: ``fill(image_id)`` scores one image; an image that has a score keeps it.
    """

    def __init__(self, description: str, fill: Callable[[str], dict[str, Any]]) -> None:
        super().__init__(description)
        self._fill = fill

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, dict[str, Any]]:
        """Score the images of a request.

        Args:
            request: ``images`` ("all", "labeled", "unlabeled", or a list of ids), as in batch inference.
            datastore: The studies.

        Returns:
            ``doubt`` per image id; ``{"skipped": True}`` where it had a score, ``{"error": sentence}`` where it failed.
        """
        images = unfinished_first(BatchInferTask().get_images(request, datastore), datastore)
        return round_over(images, self._fill, name=NAME)
