"""Order images by their scores, and by how rare the levels in view are among finished labels."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from statistics import fmean
from typing import Final

from totalspineseg_server.activelearning.scores import Score
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.errors import StorageError

SCORED, UNSCORED, UNREADABLE = range(3)
"""Ranks of images: those without a score come after those with one, and those that cannot be read come last."""
NOTHING: Final = frozenset({0})
"""The structures of a scan in which no spine was found. With this entry, only the first of such scans counts as
rare."""

Value = Callable[[Score], float | None]
"""Value of a score: the larger it is, the earlier the image comes; None if the score does not decide."""


def doubt(score: Score) -> float | None:
    """Return the value for the order *doubtful first*."""
    return score.doubt


def surety(score: Score) -> float | None:
    """Return the value for the order *surest first*."""
    return None if score.doubt is None else -score.doubt


def rarity(codes: Collection[int], labels_with: Counter[int]) -> float:
    """Return how rare the levels in view are among finished labels.

    Args:
        codes: Levels in view. Not modified.
        labels_with: Code -> number of labels that show it. Not modified.

    Returns:
        Mean over the levels of 1 / (1 + labels that show the level): 1 if no label shows any of them.
    """
    return fmean(1 / (1 + labels_with[code]) for code in codes or NOTHING)


def counts_of(labels: Iterable[Collection[int]]) -> Counter[int]:
    """Return how many labels show each code; a label without codes counts for ``NOTHING``."""
    return Counter(code for codes in labels for code in set(codes or NOTHING))


def best(images: Iterable[str], last: Mapping[str, float], scores: Mapping[str, Score], value: Value) -> str:
    """Return the image that comes first.

    Args:
        images: At least one, in the order of their names. Not modified.
        last: When each was last offered; 0 for never. Not modified.
        scores: The known scores. Not modified.
        value: The value by which images are ordered.

    Returns:
        The image with the largest value, among those that were never offered or whose offer is oldest. After images
        with a score come those without, by name, then those that cannot be read.
    """

    def place(image: str) -> tuple[float, int, float]:
        score = scores.get(image)
        known = None if score is None else value(score)
        if known is not None:
            return last[image], SCORED, -known
        return last[image], UNREADABLE if score is not None and score.refused == "image" else UNSCORED, 0.0

    return min(images, key=place)


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
