"""Find the discs that have a name before counting: landmarks of the map itself, or of a localizer."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import (
    DISC_C2_C3,
    DISC_C7_T1,
    DISC_L5_S,
    DISC_T12_L1,
    DISCS,
    LANDMARK_CLASS,
    LANDMARK_DISCS,
)
from totalspineseg_server.transforms.pieces import Piece, Pieces

MIN_LANDMARK_VOXELS: Final = 200
"""A landmark class needs more voxels than this (mm3 at 1 mm; a small C2-C3 disc has about 1000)."""
TRUSTED_PAIR: Final = 2
"""Number of landmarks, from the top of the list, that are always used; the others are used only if none was found
before."""
TRUST: Final = (DISC_C2_C3, DISC_L5_S, DISC_C7_T1, DISC_T12_L1)
"""Landmarks, most trusted first: the two ends of the mobile column cannot be mistaken for another level."""
TRUST_WITH_LOCALIZER: Final = TRUST[:2]

_CLASS_OF: Final = {code: value for value, code in LANDMARK_CLASS.items()}


def _candidates(discs: Sequence[Piece], trust: Sequence[int]) -> list[int]:
    """Return the possible landmarks: C2-C3 must be the topmost disc, and L5-S the lowest."""
    ends = {DISC_C2_C3: discs[0], DISC_L5_S: discs[-1]}
    return [code for code in trust if code not in ends or _CLASS_OF[code] in ends[code].class_voxels]


def _holder(discs: Sequence[Piece], code: int) -> int | None:
    """Return the index of the disc with most of this landmark class, if this class is the most common one in it."""
    held = [disc.class_voxels.get(_CLASS_OF[code], 0) for disc in discs]
    best = int(np.argmax(held))
    rivals = [discs[best].class_voxels.get(value, 0) for value in LANDMARK_CLASS]
    if sum(held) <= MIN_LANDMARK_VOXELS or held[best] < max(rivals):
        return None
    return best


def own_landmarks(discs: Sequence[Piece], *, trust: Sequence[int] = TRUST) -> Mapping[int, int]:
    """Return the discs that are named by the network's landmark classes.

    Args:
        discs: Superior to inferior.
        trust: Codes of the landmarks to use, most trusted first.

    Returns:
        Index of the disc -> its code; empty without discs or landmarks.
    """
    found: dict[int, int] = {}
    if not discs:
        return found
    for place, code in enumerate(_candidates(discs, trust)):
        if place >= TRUSTED_PAIR and found:
            break
        holder = _holder(discs, code)
        if holder is not None:
            found.setdefault(holder, code)
    return found


def localizer_landmarks(pieces: Pieces, localizer: npt.NDArray[np.integer[Any]]) -> Mapping[int, int]:
    """Return the discs that are named by a localizer of the same patient.

    Args:
        pieces: Pieces of this scan.
        localizer: Output codes on the grid of this scan (X, Y, Z). Not modified.

    Returns:
        Index of the disc -> its code, from the localizer's landmark discs; if none of them is in view, the topmost disc
        that overlaps any disc of the localizer. Empty if none overlaps.

    Raises:
        ValueError: The localizer has another shape.
    """
    if localizer.shape != pieces.shape:
        raise ValueError(f"expected a localizer of the scan's shape {pieces.shape}, got {localizer.shape}")
    inside = np.flatnonzero(pieces.disc_map)
    codes = np.ascontiguousarray(localizer).ravel()[inside]
    owner = pieces.disc_map.ravel()[inside] - 1
    overlap = {code: np.bincount(owner[codes == code], minlength=len(pieces.discs)) for code in DISCS}
    found: dict[int, int] = {}
    for code in LANDMARK_DISCS:
        if overlap[code].any():
            found.setdefault(int(np.argmax(overlap[code])), code)
    if found:
        return found
    for index in range(len(pieces.discs)):
        best = max(DISCS, key=lambda code: int(overlap[code][index]))
        if overlap[best][index]:
            return {index: best}
    return found


def find_landmarks(pieces: Pieces, *, localizer: npt.NDArray[np.integer[Any]] | None = None) -> Mapping[int, int]:
    """Return all discs that have a name before counting.

    Args:
        pieces: Pieces of either step.
        localizer: Output codes on the same grid, or None. Not modified.

    Returns:
        Index of the disc -> its code. With a localizer, only C2-C3 and L5-S of the scan itself are trusted; they
        take precedence over the localizer.
    """
    if localizer is None:
        return own_landmarks(pieces.discs)
    found = dict(own_landmarks(pieces.discs, trust=TRUST_WITH_LOCALIZER))
    for index, code in localizer_landmarks(pieces, localizer).items():
        if code not in found.values():
            found.setdefault(index, code)
    return found
