"""Which of some images comes first: orders by their scores, as functions of plain values."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from statistics import fmean
from typing import Final

from lib.activelearning.scores import Score

SCORED, UNSCORED, UNREADABLE = range(3)
"""Images without a score come behind those that have one; those that cannot be read come last."""
NOTHING: Final = frozenset({0})
"""Stands for the structures of a scan in which no spine was found, so that such scans are rare only once."""

Value = Callable[[Score], float | None]
"""The larger, the earlier the image comes; None where the score does not tell."""


def doubt(score: Score) -> float | None:
    """Value of the order *doubtful first*."""
    return score.doubt


def surety(score: Score) -> float | None:
    """Value of the order *surest first*."""
    return None if score.doubt is None else -score.doubt


def rarity(codes: Collection[int], shown: Counter[int]) -> float:
    """Return how rare the levels in view are among finished labels.

    Args:
        codes: Levels in view. Not modified.
        shown: Code -> how many labels show it. Not modified.

    Returns:
        Mean over the levels of 1 / (1 + labels that show it): 1 where no label shows any.
    """
    return fmean(1 / (1 + shown[code]) for code in codes or NOTHING)


def counts_of(labels: Iterable[Collection[int]]) -> Counter[int]:
    """Return how many labels show each code; one that shows none counts under ``NOTHING``."""
    return Counter(code for codes in labels for code in set(codes or NOTHING))


def best(images: Iterable[str], last: Mapping[str, float], scores: Mapping[str, Score], value: Value) -> str:
    """Choose an image.

    Args:
        images: At least one, in order of their names. Not modified.
        last: When each was offered last; 0 for never. Not modified.
        scores: Those that are known. Not modified.
        value: By what they are ordered.

    Returns:
        Of those never offered, else offered longest ago, the one of the largest value. Behind those with a score come
        those without, by name, then those that cannot be read.
    """

    def place(image: str) -> tuple[float, int, float]:
        score = scores.get(image)
        known = None if score is None else value(score)
        if known is not None:
            return last[image], SCORED, -known
        return last[image], UNREADABLE if score is not None and score.refused == "image" else UNSCORED, 0.0

    return min(images, key=place)
