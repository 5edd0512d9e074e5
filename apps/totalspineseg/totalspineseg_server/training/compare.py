"""Compare two models on the same subjects: how much each measure changed, and how certain that is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from scipy.special import stdtrit

from totalspineseg_server.agreement import LEVELS, MEASURES, CaseScore

DICE_MARGIN: Final = 0.02
"""Largest allowed fall of a group's Dice: about the difference between two careful readers."""
LEVEL_MARGIN: Final = 0.05
"""Largest allowed fall of the share of correctly named levels: one level in twenty."""
MARGINS: Final[Mapping[str, float]] = MappingProxyType(
    {measure: LEVEL_MARGIN if measure == LEVELS else DICE_MARGIN for measure in MEASURES}
)
OWN_ANSWER_MARGIN: Final = 0.3
"""Largest allowed difference in Dice between a candidate and the answers of the weights in use. Where readers had
corrected outlines, a better candidate differed by 0.2 in the structure that changed most."""
OWN_ANSWER_MARGINS: Final[Mapping[str, float]] = MappingProxyType(
    {measure: LEVEL_MARGIN if measure == LEVELS else OWN_ANSWER_MARGIN for measure in MEASURES}
)
CONFIDENCE: Final = 0.90
"""One-sided confidence that a fall stays inside its margin."""
T_LEVEL: Final = 0.955
"""Level of the t quantile for fewer than ``SKEW_FROM`` subjects. It exceeds ``CONFIDENCE`` because a bound holds less
often for skewed differences: in 88 % or more if few subjects fall far (skewness down to -1.75), in 95 % if none
does."""
SKEW_FROM: Final = 5
"""From this many subjects on, the sample shows how skewed the differences are. With fewer, following its skewness would
refuse one harmless candidate in five whose subjects hardly differ."""
LEVEL_UNSKEWED: Final = (0.89, 0.225)
"""Level of the t quantile from ``SKEW_FROM`` subjects on, without skewness: the first number plus the second divided by
the number of subjects, at least ``CONFIDENCE``. Like the next two it was fitted by simulation, so that the bound holds
in 88 % or more for each shape."""
LEVEL_FALLING, LEVEL_RISING = 0.995, 0.72
"""Level of the t quantile at the largest skewness that a sample of this size can show: if few subjects fall far, and if
few rise far. In between, the quantile follows the skewness linearly."""
SINCE_BEGINNING: Final[Mapping[str, float]] = MappingProxyType({measure: 2 * MARGINS[measure] for measure in MARGINS})
"""Largest allowed fall over all trainings of a site together, so that small falls do not add up."""
MIN_SUBJECTS: Final = 3
"""Smallest number of subjects that allow a conclusion about other subjects."""


@dataclass(frozen=True)
class SubjectScores:
    """The scores of one subject's scans by both models.

    Attributes:
        subject: The subject's id; it counts once, however many scans it has.
        active: Scores of the model in use, one per scan.
        candidate: Scores of the new model, for the same scans in the same order.
    """

    subject: str
    active: tuple[CaseScore, ...]
    candidate: tuple[CaseScore, ...]


@dataclass(frozen=True)
class Comparison:
    """One measure over all subjects.

    Attributes:
        measure: One of ``MEASURES``.
        active: Mean over subjects; nan where the measure applies to none.
        candidate: Mean over subjects.
        change: Mean of the differences over subjects.
        lower: One-sided lower bound of the change; see ``lower_bound``.
        margin: Largest allowed fall.
        subjects: Number of subjects to whom the measure applies.
    """

    measure: str
    active: float
    candidate: float
    change: float
    lower: float
    margin: float
    subjects: int

    @property
    def allowed(self) -> bool:
        """Whether even the lower bound stays inside the margin; True if the measure applies to no subject."""
        return self.subjects == 0 or self.lower >= -self.margin


def compare(subjects: Sequence[SubjectScores], *, margins: Mapping[str, float] = MARGINS) -> tuple[Comparison, ...]:
    """Compare two models measure by measure, paired by scan, with a bound over subjects.

    Args:
        subjects: Scores of both models. Not modified.
        margins: Measure -> largest allowed fall. Not modified.

    Returns:
        One comparison per measure, in the order of ``MEASURES``; with 0 subjects if a measure never applies.

    Raises:
        ValueError: A subject has a different number of scores for the two models.
    """
    for entry in subjects:
        if len(entry.active) != len(entry.candidate):
            raise ValueError(
                f"expected one score per scan and model, got {len(entry.active)} of the active model and "
                f"{len(entry.candidate)} of the candidate for {entry.subject!r}"
            )
    return tuple(_compare_measure(subjects, measure, margins[measure]) for measure in MEASURES)


def lower_bound(changes: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the lower bound of the mean change that holds with ``CONFIDENCE``, from the changes of a few subjects.

    Args:
        changes: (..., N) differences, one per subject, since two scans of a subject are not independent. Not modified.

    Returns:
        (...) bounds. With fewer than ``MIN_SUBJECTS`` subjects, the worst change is the bound.

    Source:
        Student's one-sided bound of a mean, with a quantile that follows the skewness of the sample. Corrections by
        formula (Johnson 1978, Hall 1992) were tried: they follow the skewness too little, or a single subject upsets
        them.
    """
    subjects = changes.shape[-1]
    if subjects < MIN_SUBJECTS:
        return np.asarray(changes.min(axis=-1))
    error = changes.std(axis=-1, ddof=1) / math.sqrt(subjects)
    return np.asarray(changes.mean(axis=-1) - _quantile(changes) * error)


def _quantile(changes: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return how many standard errors below the mean change the bound lies."""
    subjects = changes.shape[-1]
    if subjects < SKEW_FROM:
        return np.asarray(stdtrit(subjects - 1, T_LEVEL))
    level = max(CONFIDENCE, LEVEL_UNSKEWED[0] + LEVEL_UNSKEWED[1] / subjects)
    around = changes - changes.mean(axis=-1, keepdims=True)
    squared = around * around
    squares, cubes = squared.mean(axis=-1), (squared * around).mean(axis=-1)
    largest = (subjects - 2) / math.sqrt(subjects - 1)
    skewness = np.divide(cubes, squares**1.5, out=np.zeros_like(cubes), where=squares > 0) / largest
    return np.interp(skewness, (-1, 0, 1), stdtrit(subjects - 1, (LEVEL_FALLING, level, LEVEL_RISING)))


def _compare_measure(subjects: Sequence[SubjectScores], measure: str, margin: float) -> Comparison:
    pairs = [mean for entry in subjects if (mean := _subject_means(entry, measure)) is not None]
    if not pairs:
        nan = math.nan
        return Comparison(measure, nan, nan, nan, nan, margin, 0)
    active, candidate = np.array(pairs).T
    change = candidate - active
    lower = float(lower_bound(change))
    return Comparison(
        measure, float(active.mean()), float(candidate.mean()), float(change.mean()), lower, margin, len(pairs)
    )


def _subject_means(entry: SubjectScores, measure: str) -> tuple[float, float] | None:
    """Return the mean over the scans where the measure applies to a model; None if it applies to no scan.

    A model that rightly draws nothing where the truth shows nothing has no value (nan). If the other model invented
    that structure, this counts as 1.
    """
    values = []
    for active, candidate in zip(entry.active, entry.candidate, strict=True):
        pair = active.value(measure), candidate.value(measure)
        if all(map(math.isnan, pair)):
            continue
        values.append([1.0 if math.isnan(value) else value for value in pair])
    if not values:
        return None
    means = np.array(values).mean(axis=0)
    return float(means[0]), float(means[1])
