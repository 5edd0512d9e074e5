"""Put discs and vertebrae in one row, superior to inferior, alternating as far as the pieces allow."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final


@dataclass(frozen=True)
class Place:
    """A disc or vertebra in the row.

    Attributes:
        is_disc: Whether it is a disc.
        index: Its index among the discs, or among the vertebrae.
        height: Its height (voxel index along z, increasing toward superior).
    """

    is_disc: bool
    index: int
    height: float


MAX_END_SWAP_VOX: Final = 5.0
"""Largest difference in height of two pieces that change places at an end of the row, where only one neighbor decides
(mm at 1 mm; half a cervical body).
"""


def _best_swap(row: Sequence[Place]) -> int | None:
    """Return the position i where swapping i and i + 1 repairs the row (x x y y; at the top x y y; at the bottom x x
    y)."""
    found = []
    for i, (upper, lower) in enumerate(pairwise(row)):
        if upper.is_disc == lower.is_disc:
            continue
        distance = abs(upper.height - lower.height)
        pair_before = i > 0 and row[i - 1].is_disc == upper.is_disc
        pair_after = i + 2 < len(row) and row[i + 2].is_disc == lower.is_disc
        at_end = (i == 0 and pair_after) or (i + 2 == len(row) and pair_before)
        if (pair_before and pair_after) or (at_end and distance <= MAX_END_SWAP_VOX):
            found.append((at_end, distance, i))
    return min(found)[2] if found else None


def interleave(disc_heights: Sequence[tuple[int, float]], vertebra_heights: Sequence[tuple[int, float]]) -> list[Place]:
    """Put discs and vertebrae in one row.

    Two discs without a vertebra between them, next to two vertebrae without a disc between them, are out of order: the
    two that are nearest in height change places. At either end of the row, two that are nearly level also change
    places.

    Args:
        disc_heights: (index, height) of the discs, superior to inferior.
        vertebra_heights: The same for the vertebrae.

    Returns:
        All of them, superior to inferior; a disc comes before a vertebra of the same height.
    """
    row = [Place(True, index, height) for index, height in disc_heights]
    row += [Place(False, index, height) for index, height in vertebra_heights]
    row.sort(key=lambda place: (-place.height, not place.is_disc))
    while (i := _best_swap(row)) is not None:
        row[i], row[i + 1] = row[i + 1], row[i]
    return row
