"""Measure how well a named segmentation agrees with its truth: Dice for groups of structures, and level names."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from scipy import ndimage

from totalspineseg_server.anatomy import CANAL, CORD, DISCS, SACRUM, UNREVIEWED, VERTEBRAE
from totalspineseg_server.errors import GridError
from totalspineseg_server.geometry import LabelArray

Counts = np.ndarray[tuple[int, int], np.dtype[np.int64]]
"""Number of voxels for each (true value, predicted value)."""

GROUPS: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {"vertebrae": VERTEBRAE, "discs": DISCS, "sacrum": (SACRUM,), "canal": (CANAL, CORD), "cord": (CORD,)}
)
"""Groups of structures whose outlines are compared, whatever the names of levels; the canal includes the cord."""
LEVELS: Final = "levels"
"""Name of the measure for the share of correctly named levels."""
MEASURES: Final = (*GROUPS, LEVELS)
"""All measures, in the order of tables."""
MIN_MM3: Final = 300.0
"""Smallest volume in the truth of a level or group that counts. Less is a sliver at the edge of the scan, whose name
and Dice are luck. A group still counts if a prediction has twice as much.
"""
LEVEL_OVERLAP: Final = 0.25
"""A level counts as found if at least this share of its true voxels has the name of a level of its kind; less is
chance."""


@dataclass(frozen=True)
class Left:
    """Structures of a reader's label that were left as a model predicted them. They count neither for nor against that
    model and its descendants.

    Attributes:
        untouched: Codes whose outline and name are the prediction's.
        renamed: Codes whose outline is the prediction's; the name is a reader's.
    """

    untouched: frozenset[int] = frozenset()
    renamed: frozenset[int] = frozenset()

    @property
    def count(self) -> int:
        """How many structures were left."""
        return len(self.untouched | self.renamed)


NOTHING_LEFT: Final = Left()


@dataclass(frozen=True)
class CaseScore:
    """Agreement of one prediction with its truth.

    Attributes:
        dice: Group -> Dice, 0..1; nan if there was nothing to find (see ``MIN_MM3``) and nothing was found.
        levels: Number of vertebrae and discs of the truth in view (see ``MIN_MM3``).
        levels_found: Number of these named as some level of their kind (see ``LEVEL_OVERLAP``).
        levels_right: Number of the found levels that have their own name more than any other of their kind.
        is_doubtful: Whether the prediction itself calls its names doubtful.
    """

    dice: Mapping[str, float]
    levels: int
    levels_found: int
    levels_right: int
    is_doubtful: bool = False

    def value(self, measure: str) -> float:
        """Return one of ``MEASURES`` as a number 0..1; nan if it does not apply."""
        if measure == LEVELS:
            return self.levels_right / self.levels if self.levels else float("nan")
        return self.dice[measure]


def score_case(
    truth: LabelArray, predicted: LabelArray, *, voxel_mm3: float = 1.0, left: Left = NOTHING_LEFT
) -> CaseScore:
    """Compare two label maps of codes.

    Args:
        truth: (X, Y, Z) uint8 codes, ``UNREVIEWED`` where nobody checked. Not modified.
        predicted: The same shape; all 0 if the model found no spine. Not modified.
        voxel_mm3: Volume of a voxel.
        left: Structures of the truth that do not count.

    Returns:
        The score. For an empty truth all Dice are nan, but 0 for groups that were predicted.

    Raises:
        GridError: The shapes differ.
    """
    counts, least = _joint_counts(truth, predicted), MIN_MM3 / voxel_mm3
    dice = _dice(counts, GROUPS, voxel_mm3)
    outlines = left.untouched | left.renamed
    for name, codes in GROUPS.items():
        present = {code for code in codes if counts[code].any()}
        if present and present <= outlines:
            dice[name] = float("nan")
        elif present & outlines:
            dice[name] = _dice_of(_counts_beside(truth, predicted, codes, outlines), list(codes), least)
    return CaseScore(dice, *_levels(counts, least, without=left.untouched))


def dice_by_group(
    truth: LabelArray,
    predicted: LabelArray,
    groups: Mapping[str, tuple[int, ...]] = GROUPS,
    *,
    voxel_mm3: float = 1.0,
) -> dict[str, float]:
    """Return the Dice of ``score_case`` for other groups, such as a network's regions.

    Args:
        truth: (X, Y, Z) uint8 values, ``UNREVIEWED`` where nobody checked. Not modified.
        predicted: The same shape. Not modified.
        groups: Name -> values.
        voxel_mm3: Volume of a voxel.

    Returns:
        Group -> Dice, 0..1; nan if there was nothing to find (see ``MIN_MM3``) and nothing was found.

    Raises:
        GridError: The shapes differ.
    """
    return _dice(_joint_counts(truth, predicted), groups, voxel_mm3)


def levels_apart(
    one: LabelArray, other: LabelArray, codes: tuple[int, ...] = DISCS, *, voxel_mm3: float = 1.0
) -> float | None:
    """Return the share of levels that differ between two maps of a scan: in one map only, elsewhere, or named
    differently.

    Args:
        one: (X, Y, Z) uint8 codes. Not modified.
        other: The same shape. Not modified.
        codes: Which levels.
        voxel_mm3: Volume of a voxel.

    Returns:
        0..1. A level that both maps show alike (see ``LEVEL_OVERLAP``, of the smaller one) counts twice. None if
        neither map shows a level (see ``MIN_MM3``).

    Raises:
        GridError: The shapes differ.
    """
    counts = _joint_counts(one, other)
    least, in_view, alike = MIN_MM3 / voxel_mm3, 0, 0
    for code in codes:
        sizes = int(counts[code].sum()), int(counts[:, code].sum())
        in_view += sum(size >= least for size in sizes)
        alike += min(sizes) >= least and int(counts[code, code]) >= LEVEL_OVERLAP * min(sizes)
    return 1 - 2 * alike / in_view if in_view else None


def named_apart(one: LabelArray, other: LabelArray) -> dict[int, int]:
    """Return the levels of one map that have another name in another map of the same scan.

    Args:
        one: (X, Y, Z) uint8 codes. Not modified.
        other: The same shape. Not modified.

    Returns:
        Code in the first map -> code of the structure there in the other map (see ``LEVEL_OVERLAP``).

    Raises:
        GridError: The shapes differ.
    """
    counts, apart = _joint_counts(one, other), dict[int, int]()
    for kind in (VERTEBRAE, DISCS):
        for code in kind:
            names = counts[code, list(kind)]
            if counts[code].any() and names.sum() >= LEVEL_OVERLAP * counts[code].sum():
                found = kind[int(names.argmax())]
                apart |= {} if found == code else {code: found}
    return apart


def _joint_counts(truth: LabelArray, predicted: LabelArray) -> Counts:
    """Count the pairs of values in one pass over the voxels."""
    if truth.shape != predicted.shape:
        raise GridError(f"expected a prediction of shape {truth.shape}, got {predicted.shape}")
    size = np.iinfo(np.uint8).max + 1
    pairs = truth.ravel().astype(np.int32) * size + predicted.ravel()
    counts = np.bincount(pairs, minlength=size * size).reshape(size, size)
    # Nothing is right or wrong where nobody checked.
    counts[UNREVIEWED] = 0
    return counts


def _counts_beside(
    truth: LabelArray, predicted: LabelArray, group: tuple[int, ...], outlines: frozenset[int]
) -> Counts:
    """Return the joint counts of a group, leaving out voxels of structures that do not count.

    Each voxel belongs to the nearest structure of the group, so that drawing such a structure too wide does not count
    either.
    """
    true = np.isin(truth, group)
    places = ndimage.find_objects((true | np.isin(predicted, group)).astype(np.uint8))[0]
    truth, predicted, true = truth[places], predicted[places], true[places]
    nearest = ndimage.distance_transform_edt(~true, return_distances=False, return_indices=True)
    owner = truth[tuple(nearest)]
    return _joint_counts(np.where(np.isin(owner, list(outlines)), np.uint8(UNREVIEWED), truth), predicted)


def _dice(counts: Counts, groups: Mapping[str, tuple[int, ...]], voxel_mm3: float) -> dict[str, float]:
    least = MIN_MM3 / voxel_mm3
    return {name: _dice_of(counts, list(values), least) for name, values in groups.items()}


def _dice_of(counts: Counts, rows: list[int], least: float) -> float:
    true, found = int(counts[rows].sum()), int(counts[:, rows].sum())
    if true < least and found < 2 * least:
        return float("nan")
    return 2 * int(counts[np.ix_(rows, rows)].sum()) / (true + found)


def _levels(counts: Counts, least: float, *, without: frozenset[int] = frozenset()) -> tuple[int, int, int]:
    """Return how many levels are in view, found, and found under their own name, without those that do not count."""
    total = found = right = 0
    for kind in (VERTEBRAE, DISCS):
        for code in kind:
            voxels = int(counts[code].sum())
            if voxels < least or code in without:
                continue
            total += 1
            names = counts[code, list(kind)]
            if names.sum() >= LEVEL_OVERLAP * voxels:
                found += 1
                right += kind[int(names.argmax())] == code
    return total, found, right
