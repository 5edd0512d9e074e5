"""Read which levels the finished labels show, so that the order *most to learn* knows which levels are rare."""

from collections.abc import Iterable
from typing import Final

from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.errors import StorageError

FINISHED_STEP: Final = 2
"""Step of a finished label; a corrected step-1 map has no names."""


class FinishedLevels:
    """The levels of finished labels. Records never change, so each is read only once.

    Args:
        corrections: The store of the labels.
    """

    def __init__(self, corrections: CorrectionStore) -> None:
        self._corrections = corrections
        self._known: dict[tuple[str, str], frozenset[int] | None] = {}

    def of(self, images: Iterable[str]) -> list[frozenset[int]]:
        """Return the structures of the latest finished label of each image that has one.

        Args:
            images: Ids. Not modified.
        """
        latest = (self._latest(image) for image in images)
        return [levels for levels in latest if levels is not None]

    def _latest(self, image: str) -> frozenset[int] | None:
        withdrawn = self._corrections.withdrawals.of_image(image)
        for correction in reversed(self._corrections.ids(image)):
            levels = None if correction in withdrawn else self._levels(image, correction)
            if levels is not None:
                return levels
        return None

    def _levels(self, image: str, correction: str) -> frozenset[int] | None:
        """Return the structures of a record; None if it is not a finished label or cannot be read now."""
        place = (image, correction)
        if place not in self._known:
            try:
                record = self._corrections.read(image, correction)
            except StorageError:
                return None
            finished = record.status == "accepted" and record.step == FINISHED_STEP
            self._known[place] = frozenset(record.present) if finished else None
        return self._known[place]
