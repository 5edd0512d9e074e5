"""How well a named segmentation agrees with its truth: Dice by group of structures, and level names."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from lib.anatomy import CANAL, CORD, DISCS, SACRUM, UNREVIEWED, VERTEBRAE
from lib.errors import GridError
from lib.geometry import LabelArray

GROUPS: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {"vertebrae": VERTEBRAE, "discs": DISCS, "sacrum": (SACRUM,), "canal": (CANAL, CORD), "cord": (CORD,)}
)
"""Groups whose outlines are compared, names of levels left aside; the canal includes the cord."""
LEVELS: Final = "levels"
"""Name of the measure that counts rightly named levels."""
MEASURES: Final = (*GROUPS, LEVELS)
"""Every measure, in the order of tables."""
MIN_LEVEL_MM3: Final = 50.0
"""A vertebra or disc with less is cut by the edge of the scan: naming it is luck, not skill."""
MIN_GROUP_MM3: Final = 300.0
"""A group with less in truth is a sliver at the edge of the scan: its Dice is 0 or 1 by luck, and would outweigh every
outline. It counts only where a prediction has twice as much."""
LEVEL_OVERLAP: Final = 0.25
"""A level counts as found when this share of its true voxels carries a name of its kind: less is a chance touch."""


@dataclass(frozen=True)
class CaseScore:
    """Agreement of one prediction with its truth.

    Attributes:
        dice: Group -> Dice, 0..1; nan when there was nothing to find (see ``MIN_GROUP_MM3``) and nothing was.
        levels_right: Vertebrae and discs of the truth that were found under their own name.
        levels: Vertebrae and discs of the truth.
    """

    dice: Mapping[str, float]
    levels_right: int
    levels: int

    def value(self, measure: str) -> float:
        """One of ``MEASURES`` as a number 0..1, nan when it does not apply."""
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
    if truth.shape != predicted.shape:
        raise GridError(f"a prediction of shape {truth.shape} is required, got {predicted.shape}; compare on one grid")
    counts = _joint_counts(truth, predicted)
    dice = {name: _dice(counts, codes, MIN_GROUP_MM3 / voxel_mm3) for name, codes in GROUPS.items()}
    right, total = _levels(counts, MIN_LEVEL_MM3 / voxel_mm3)
    return CaseScore(dice, right, total)


def _joint_counts(truth: LabelArray, predicted: LabelArray) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Voxels by (true code, predicted code), the one pass over the voxels."""
    size = np.iinfo(np.uint8).max + 1
    pairs = truth.ravel().astype(np.int32) * size + predicted.ravel()
    counts = np.bincount(pairs, minlength=size * size).reshape(size, size)
    # Where nobody has looked, nothing is right or wrong.
    counts[UNREVIEWED] = 0
    return counts


def _dice(counts: np.ndarray[tuple[int, int], np.dtype[np.int64]], codes: tuple[int, ...], least: float) -> float:
    rows = list(codes)
    true, found = int(counts[rows].sum()), int(counts[:, rows].sum())
    if true < least and found < 2 * least:
        return float("nan")
    return 2 * int(counts[np.ix_(rows, rows)].sum()) / (true + found)


def _levels(counts: np.ndarray[tuple[int, int], np.dtype[np.int64]], least: float) -> tuple[int, int]:
    """Levels under their own name, and levels of the truth."""
    right = total = 0
    for kind in (VERTEBRAE, DISCS):
        for code in kind:
            voxels = int(counts[code].sum())
            if voxels < least:
                continue
            total += 1
            names = counts[code, list(kind)]
            enough = names.sum() >= LEVEL_OVERLAP * voxels
            right += bool(enough and kind[int(names.argmax())] == code)
    return right, total
