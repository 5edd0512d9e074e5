"""Turn maps of output codes into the classes and channels of the two networks."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from totalspineseg_server import anatomy

Codes = NDArray[np.uint8]


def _look_up(labels: NDArray[np.integer[Any]], table: Mapping[int, int]) -> Codes:
    lut = np.zeros(256, np.uint8)
    for code, value in table.items():
        lut[code] = value
    return np.asarray(lut[labels])


def step1_classes(labels: NDArray[np.integer[Any]]) -> Codes:
    """Return the perfect step-1 network result for a label map.

    Args:
        labels: Output codes (X, Y, Z). Not modified.

    Returns:
        Step-1 classes, uint8 (X, Y, Z); all 0 for an empty map.
    """
    return _look_up(labels, anatomy.STEP1_FROM_CODE)


def step2_classes(labels: NDArray[np.integer[Any]], *, swapped: bool = False) -> Codes:
    """Return the perfect step-2 network result for a label map.

    Args:
        labels: Output codes (X, Y, Z). Not modified.
        swapped: Whether odd and even are exchanged, as when the other set of discs is marked.

    Returns:
        Step-2 classes, uint8 (X, Y, Z); all 0 for an empty map.
    """
    table = dict(anatomy.STEP2_FROM_CODE)
    if swapped:
        odd, even = anatomy.Step2.VERTEBRA_ODD.value, anatomy.Step2.VERTEBRA_EVEN.value
        table |= {code: even if value == odd else odd for code, value in table.items() if value in (odd, even)}
    return _look_up(labels, table)


def disc_order(labels: NDArray[np.integer[Any]]) -> tuple[int, ...]:
    """Return the codes of the discs in a map, superior to inferior (by mean z; the last axis points up)."""
    found = [code for code in np.unique(labels) if int(code) in anatomy.DISCS]
    heights = {int(code): float(np.mean(np.nonzero(labels == code)[2])) for code in found}
    return tuple(sorted(heights, key=lambda code: -heights[code]))


def mark_discs(labels: NDArray[np.integer[Any]], codes: Collection[int]) -> Codes:
    """Return a map that is 1 on the discs with these codes and 0 elsewhere, uint8 (X, Y, Z)."""
    return _look_up(labels, dict.fromkeys(codes, 1))
