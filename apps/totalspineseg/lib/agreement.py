"""Measure how well a named segmentation agrees with its truth: Dice by group of structures, and level names."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from lib.anatomy import CANAL, CORD, DISCS, SACRUM, UNREVIEWED, VERTEBRAE
from lib.errors import GridError
from lib.geometry import LabelArray

Counts = np.ndarray[tuple[int, int], np.dtype[np.int64]]
"""Voxels by (true value, predicted value)."""

GROUPS: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {"vertebrae": VERTEBRAE, "discs": DISCS, "sacrum": (SACRUM,), "canal": (CANAL, CORD), "cord": (CORD,)}
)
"""Groups whose outlines are compared without regard to the names of levels; the canal includes the cord."""
LEVELS: Final = "levels"
"""Name of the measure that counts rightly named levels."""
MEASURES: Final = (*GROUPS, LEVELS)
"""Every measure, in the order of tables."""
MIN_MM3: Final = 300.0
"""Volume in truth below which a level or a group is a sliver at the edge of the scan: its name and its Dice are luck,
and would outweigh every outline. A group counts anyway where a prediction has twice as much.
"""
LEVEL_OVERLAP: Final = 0.25
"""Share of a level's true voxels with a name of its kind from which it counts as found; less is a chance touch."""


@dataclass(frozen=True)
class CaseScore:
    """Agreement of one prediction with its truth.

    Attributes:
        dice: Group -> Dice, 0..1; nan when there was nothing to find (see ``MIN_MM3``) and nothing was.
        levels: Vertebrae and discs of the truth in view (see ``MIN_MM3``).
        levels_found: Number of these named as some level of their kind (see ``LEVEL_OVERLAP``).
        levels_right: Number of the found ones that carry their own name more than any other of their kind.
    """

    dice: Mapping[str, float]
    levels: int
    levels_found: int
    levels_right: int

    def value(self, measure: str) -> float:
        """Return one of ``MEASURES`` as a number 0..1, nan when it does not apply."""
        if measure == LEVELS:
            return self.levels_right / self.levels if self.levels else float("nan")
        return self.dice[measure]


def score_case(truth: LabelArray, predicted: LabelArray, *, voxel_mm3: float = 1.0) -> CaseScore:
    """Compare two label maps of codes.

    Args:
        truth: (X, Y, Z) uint8 codes, ``UNREVIEWED`` where nobody has looked. Not modified.
        predicted: The same shape; all 0 when the model found no spine. Not modified.
        voxel_mm3: Volume of a voxel.

    Returns:
        The score; an empty truth gives nan, or 0 for groups that were predicted into it.

    Raises:
        GridError: The shapes differ.
    """
    counts = _joint_counts(truth, predicted)
    return CaseScore(_dice(counts, GROUPS, voxel_mm3), *_levels(counts, MIN_MM3 / voxel_mm3))


def dice_by_group(
    truth: LabelArray,
    predicted: LabelArray,
    groups: Mapping[str, tuple[int, ...]] = GROUPS,
    *,
    voxel_mm3: float = 1.0,
) -> dict[str, float]:
    """Return the Dice of ``score_case`` for other groups, such as a network's regions.

    Args:
        truth: (X, Y, Z) uint8 values, ``UNREVIEWED`` where nobody has looked. Not modified.
        predicted: The same shape. Not modified.
        groups: Name -> values.
        voxel_mm3: Volume of a voxel.

    Returns:
        Group -> Dice, 0..1; nan when there was nothing to find (see ``MIN_MM3``) and nothing was.

    Raises:
        GridError: The shapes differ.
    """
    return _dice(_joint_counts(truth, predicted), groups, voxel_mm3)


def _joint_counts(truth: LabelArray, predicted: LabelArray) -> Counts:
    """Count the pairs of values in one pass over the voxels."""
    if truth.shape != predicted.shape:
        raise GridError(f"expected a prediction of shape {truth.shape}, got {predicted.shape}")
    size = np.iinfo(np.uint8).max + 1
    pairs = truth.ravel().astype(np.int32) * size + predicted.ravel()
    counts = np.bincount(pairs, minlength=size * size).reshape(size, size)
    # Nothing is right or wrong where nobody has looked.
    counts[UNREVIEWED] = 0
    return counts


def _dice(counts: Counts, groups: Mapping[str, tuple[int, ...]], voxel_mm3: float) -> dict[str, float]:
    least = MIN_MM3 / voxel_mm3
    return {name: _dice_of(counts, list(values), least) for name, values in groups.items()}


def _dice_of(counts: Counts, rows: list[int], least: float) -> float:
    true, found = int(counts[rows].sum()), int(counts[:, rows].sum())
    if true < least and found < 2 * least:
        return float("nan")
    return 2 * int(counts[np.ix_(rows, rows)].sum()) / (true + found)


def _levels(counts: Counts, least: float) -> tuple[int, int, int]:
    """Return the numbers of levels in view, found, and found under their own name."""
    total = found = right = 0
    for kind in (VERTEBRAE, DISCS):
        for code in kind:
            voxels = int(counts[code].sum())
            if voxels < least:
                continue
            total += 1
            names = counts[code, list(kind)]
            if names.sum() >= LEVEL_OVERLAP * voxels:
                found += 1
                right += kind[int(names.argmax())] == code
    return total, found, right
