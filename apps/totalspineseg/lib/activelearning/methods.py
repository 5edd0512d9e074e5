"""Scoring methods: what a client can have worked out in the background about all images."""

from collections.abc import Callable, Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod

from lib.activelearning.rounds import round_over, unfinished_first

NAME = "scoring"


class ImageScoring(ScoringMethod):  # type: ignore[misc]
    """Scores the images that have no score yet.

    Args:
        description: What it scores by.
        fill: ``fill(image_id)`` scores one image, and leaves one that has a score as it is.
    """

    def __init__(self, description: str, fill: Callable[[str], dict[str, Any]]) -> None:
        super().__init__(description)
        self._fill = fill

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, dict[str, Any]]:
        """Go through the images.

        Args:
            request: ``images`` ("all", "labeled", "unlabeled", or a list of ids), as of batch inference.
            datastore: The studies.

        Returns:
            ``doubt`` per image id; ``{"skipped": True}`` where it had one, ``{"error": sentence}`` where it failed.
        """
        images = unfinished_first(BatchInferTask().get_images(request, datastore), datastore)
        return round_over(images, self._fill, name=NAME)
