"""Discs and vertebrae as one row, superior to inferior, alternating as far as the pieces allow."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """One disc or vertebra in the row.

    Attributes:
        is_disc: Whether it is a disc.
        index: Its index among the discs, or among the vertebrae.
        height: Where it stands (voxel index along z, rising to superior).
    """

    is_disc: bool
    index: int
    height: float


def _swaps(row: Sequence[Place]) -> list[int]:
    """Positions i where changing i and i + 1 mends the row: x x y y, or x y y first, or x x y last."""
    found = []
    for i in range(len(row) - 1):
        if row[i].is_disc == row[i + 1].is_disc:
            continue
        pair_before = i > 0 and row[i - 1].is_disc == row[i].is_disc
        pair_after = i + 2 < len(row) and row[i + 2].is_disc == row[i + 1].is_disc
        first, last = i == 0, i + 2 == len(row)
        if (pair_before or first) and (pair_after or last) and (pair_before or pair_after):
            found.append(i)
    return found


def interleave(disc_heights: Sequence[tuple[int, float]], vertebra_heights: Sequence[tuple[int, float]]) -> list[Place]:
    """Put discs and vertebrae in one row.

    Two discs without a vertebra between next to two vertebrae without a disc between are out of
    order: the nearer pair changes places. The same holds for a single one at either end.

    Args:
        disc_heights: (index, height) of the discs, superior to inferior.
        vertebra_heights: The same of the vertebrae.

    Returns:
        All of them, superior to inferior; a disc goes before a vertebra of the same height.
    """
    row = [Place(True, index, height) for index, height in disc_heights]
    row += [Place(False, index, height) for index, height in vertebra_heights]
    row.sort(key=lambda place: (-place.height, not place.is_disc))
    while swaps := _swaps(row):
        i = min(swaps, key=lambda i: abs(row[i].height - row[i + 1].height))
        row[i], row[i + 1] = row[i + 1], row[i]
    return row
