"""Put pieces in one row and name them by the iterative method, and make a label map from names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import (
    BACKGROUND,
    CODE_FROM_STEP1,
    CODE_FROM_STEP2,
    DISC_L5_L6,
    DISC_L5_S,
    DISC_T12_T13,
    SACRUM,
    Column,
    Kind,
    Step2,
    column,
)
from totalspineseg_server.transforms.components import Labels, foreground_box, look_up
from totalspineseg_server.transforms.landmarks import find_landmarks
from totalspineseg_server.transforms.pieces import Piece, Pieces, Step

UNNAMED: Final = BACKGROUND
"""Code of a piece without a name."""


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


@dataclass(frozen=True)
class Naming:
    """A code for every piece; ``UNNAMED`` (0) if it has none.

    Attributes:
        discs: Codes of ``Pieces.discs``, in their order.
        vertebrae: Codes of ``Pieces.vertebrae``, in their order.
    """

    discs: tuple[int, ...]
    vertebrae: tuple[int, ...]


def _column_with(disc: int, *, lumbar: int = 5) -> Column:
    """Return the normal column, or the variant to which this disc belongs."""
    return column(13 if disc == DISC_T12_T13 else 12, 6 if disc == DISC_L5_L6 else lumbar)


def _discs_above(disc: int) -> list[int]:
    """Return the codes above a disc, the nearest first."""
    codes = [code for code in _column_with(disc).discs if code is not None]
    return codes[: codes.index(disc)][::-1]


def _discs_below(disc: int) -> list[int]:
    """Return the codes below a disc, the nearest first, down to L5-L6; only a landmark shows the disc on S1."""
    if disc == DISC_L5_S:
        return []
    codes = [code for code in _column_with(disc, lumbar=6).discs if code is not None and code != DISC_L5_S]
    return codes[codes.index(disc) + 1 :]


def _name_discs(count: int, landmarks: Mapping[int, int]) -> tuple[int, ...]:
    """Name discs by counting from the landmarks: up from the topmost, down from each."""
    names = [UNNAMED] * count
    for order, index in enumerate(sorted(landmarks)):
        below = _discs_below(landmarks[index])
        names[index:] = [landmarks[index], *below, *[UNNAMED] * count][: count - index]
        if order == 0:
            above = _discs_above(landmarks[index])
            names[:index] = [*above, *[UNNAMED] * count][:index][::-1]
    return tuple(names)


def _vertebra_below(disc: int) -> int:
    """Return the vertebra (or the sacrum) below a disc."""
    everything = column(13, 6)
    following = [*everything.vertebrae[1:], SACRUM]
    return following[everything.discs.index(disc)]


def _vertebrae_above(disc: int) -> list[int]:
    """Return the vertebrae above a disc, the nearest first."""
    with_disc = _column_with(disc)
    return list(with_disc.vertebrae[: with_disc.discs.index(disc) + 1][::-1])


def _next_below(vertebra: int) -> int:
    """Return the next name in the normal column, or in its variant for an extra vertebra; none below the sacrum."""
    for candidate in (column(), column(13, 6)):
        following = [*candidate.vertebrae, SACRUM, UNNAMED]
        if vertebra in following:
            return following[following.index(vertebra) + 1] if vertebra != UNNAMED else UNNAMED
    return UNNAMED


def _name_vertebrae(row: Sequence[Place], discs: Sequence[int], vertebrae: Sequence[Piece]) -> tuple[int, ...]:
    """Name each vertebra by the disc above it; above the first disc count upward, below the last one downward."""
    names = [UNNAMED] * len(vertebrae)
    is_disc = [place.is_disc for place in row]
    first = is_disc.index(True)
    for place, name in zip(row[:first][::-1], _vertebrae_above(discs[row[first].index]), strict=False):
        names[place.index] = name
    for above, place in pairwise(row):
        if above.is_disc and not place.is_disc:
            names[place.index] = _vertebra_below(discs[above.index])
    last = len(row) - is_disc[::-1].index(True)
    for above, place in pairwise(row[last:]):
        names[place.index] = _next_below(names[above.index])
    return tuple(SACRUM if piece.kind is Kind.SACRUM else name for piece, name in zip(vertebrae, names, strict=True))


def name_iteratively(pieces: Pieces, *, localizer: npt.NDArray[np.integer[Any]] | None = None) -> Naming:
    """Name discs by counting from the landmarks, and vertebrae by the discs.

    Args:
        pieces: Pieces of either step.
        localizer: Output codes of another series of the same patient, on this grid, or None. Not modified.

    Returns:
        One code per piece. If there is no landmark, only the sacrum has a name.

    Raises:
        ValueError: The localizer is on another grid.

    Source:
        SPEC of the iterative labeling (TotalSpineSeg, Warszawer et al. 2025).
    """
    landmarks = find_landmarks(pieces, localizer=localizer)
    discs = _name_discs(len(pieces.discs), landmarks)
    named = [(k, piece.z_order) for k, piece in enumerate(pieces.discs) if discs[k] != UNNAMED]
    if not named:
        return Naming(discs, tuple(SACRUM if p.kind is Kind.SACRUM else UNNAMED for p in pieces.vertebrae))
    row = interleave(named, [(k, piece.z_order) for k, piece in enumerate(pieces.vertebrae)])
    return Naming(discs, _name_vertebrae(row, discs, pieces.vertebrae))


def paint(pieces: Pieces, raw: Labels, naming: Naming, step: Step) -> Labels:
    """Write the names into a label map.

    Args:
        pieces: Pieces of ``raw``.
        raw: uint8 (X, Y, Z), classes of the step's network. Not modified.
        naming: Codes of the pieces.
        step: 1 or 2.

    Returns:
        A new uint8 map of output codes: named pieces, canal, cord and sacrum; in step 1 also C1, and all other
        vertebrae have the sacrum's code there. Unnamed pieces become background, even those of the sacrum's class. So
        do voxels of that class that are too few for a piece, if no piece is the sacrum.

    Raises:
        ValueError: The naming belongs to other pieces.
    """
    if (len(naming.discs), len(naming.vertebrae)) != (len(pieces.discs), len(pieces.vertebrae)):
        raise ValueError(
            f"expected a code for each of {len(pieces.discs)} discs and {len(pieces.vertebrae)} vertebrae, "
            f"got {len(naming.discs)} and {len(naming.vertebrae)}"
        )
    labels = np.zeros(raw.shape, dtype=np.uint8)
    box = foreground_box(raw)
    if box is None:
        return labels
    fixed = np.zeros(256, dtype=np.uint8)
    for value, code in (CODE_FROM_STEP1 if step == 1 else CODE_FROM_STEP2).items():
        fixed[value] = code
    painted = look_up(raw[box], fixed)
    not_sacrum = [
        k
        for k, (piece, code) in enumerate(zip(pieces.vertebrae, naming.vertebrae, strict=True), start=1)
        if Step2.SACRUM.value in piece.class_voxels and code != SACRUM
    ]
    if not_sacrum and pieces.vertebra_map is not None:
        painted[np.isin(pieces.vertebra_map[box], not_sacrum)] = BACKGROUND
    if step == 2 and SACRUM not in naming.vertebrae:
        painted[painted == SACRUM] = BACKGROUND
    for numbered, codes in ((pieces.vertebra_map, naming.vertebrae), (pieces.disc_map, naming.discs)):
        if numbered is not None:
            crop = numbered[box]
            own = (crop != 0) & (painted == BACKGROUND)
            painted[own] = np.array([UNNAMED, *codes], dtype=np.uint8)[crop[own]]
    labels[box] = painted
    return labels
