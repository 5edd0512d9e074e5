"""Order images by their scores, with functions of plain values."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from statistics import fmean
from typing import Final

from totalspineseg_server.activelearning.scores import Score

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
