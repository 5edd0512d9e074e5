"""Make the input of step 2: the box around the step-1 result, and every other disc, by its place in the column."""

from collections.abc import Collection
from typing import Final

import numpy as np

from totalspineseg_server.anatomy import (
    BACKGROUND,
    C1,
    DISC_L4_L5,
    DISC_L5_L6,
    DISC_T11_T12,
    DISC_T12_T13,
    DISCS,
    L4,
    L5,
    L6,
    LUMBAR,
    SACRUM,
    T11,
    T12,
    T13,
    VERTEBRAE,
    Column,
    column,
)
from totalspineseg_server.errors import NoSpineError
from totalspineseg_server.transforms.components import Box, Labels, foreground_box, labels_present, look_up

CROP_MARGIN_MM: Final = 10
"""Margin around the step-1 result, at inference and in training: the step-2 networks were trained with it."""


def odd_discs(labels: Labels, *, missed: Collection[int] = ()) -> Labels:
    """Mark every other disc, beginning with the most superior one present.

    Args:
        labels: uint8 (X, Y, Z), output codes. Not modified. missed: Discs in view that have no voxels. They are
        counted nevertheless: otherwise two neighboring vertebrae would get the same class and look like one vertebra.

    Returns:
        A new uint8 map: 1 in the odd discs, else 0; all 0 without discs.

    Source:
        The reference counts only the discs that are present, like this function without ``missed``.
    """
    present = labels_present(labels)
    row = [code for code in DISCS if present[code] or code in missed]
    first = next((place for place, code in enumerate(row) if present[code]), 0)
    table = np.zeros(256, dtype=np.uint8)
    table[row[first::2]] = 1
    return look_up(labels, table)


def discs_named_as(labels: Labels, result: Labels) -> Labels:
    """Return a step-1 map whose discs have the names that the result gave them.

    Args:
        labels: uint8 (X, Y, Z), codes of step 1. Not modified.
        result: uint8, the same shape, codes of the result. Not modified.

    Returns:
        ``labels`` itself if the names agree. Otherwise a new map without discs that the result does not name, or whose
        name fits another disc better.
    """
    both = np.isin(labels, DISCS) & np.isin(result, DISCS)
    counts = np.zeros((256, 256), dtype=np.intp)
    np.add.at(counts, (labels[both], result[both]), 1)
    present = labels_present(labels)
    table = np.arange(256, dtype=np.uint8)
    for code in (code for code in DISCS if present[code]):
        name = int(counts[code].argmax())
        agrees = counts[code, name] > 0 and counts[:, name].argmax() == code
        table[code] = name if agrees else BACKGROUND
    return labels if (table == np.arange(256)).all() else look_up(labels, table)


def missing_discs(labels: Labels) -> tuple[int, ...]:
    """Return the discs between the first and the last one present that have no voxels.

    In a map of step 1, a missed T11-T12 or L4-L5 looks like a column without this disc, so these two never count as
    missing there.

    Args:
        labels: uint8 (X, Y, Z), output codes. Not modified.

    Returns:
        The codes, superior to inferior, in the column of ``column_showing``.
    """
    present = np.flatnonzero(labels_present(labels)).tolist()
    of_step1 = not any(code in present for code in VERTEBRAE if code != C1)
    open_ones = (DISC_T11_T12, DISC_L4_L5) if of_step1 else ()
    row = [c for c in column_showing(present).discs if c is not None and (c in present or c not in open_ones)]
    in_view = [place for place, code in enumerate(row) if code in present]
    return tuple(code for code in row[min(in_view) : max(in_view)] if code not in present) if in_view else ()


def column_showing(present: Collection[int], *, whole: bool = True) -> Column:
    """Return the column that fits the codes in view, or the usual one if they do not decide.

    Args:
        present: Codes that have voxels.
        whole: Whether all of the map was reviewed; if not, a missing code does not decide.
    """
    codes = set(present)
    thoracic, lumbar = 12, 5
    if {T13, DISC_T12_T13} & codes:
        thoracic = 13
    elif whole and {T11, LUMBAR[0]} <= codes and not {T12, DISC_T11_T12} & codes:
        thoracic = 11
    if {L6, DISC_L5_L6} & codes:
        lumbar = 6
    elif whole and {L4, SACRUM} <= codes and not {L5, DISC_L4_L5} & codes:
        lumbar = 4
    return column(thoracic, lumbar)


def crop_box(labels: Labels, *, margin: int) -> Box:
    """Return the part of a scan that goes to step 2.

    Args:
        labels: uint8 (X, Y, Z) 1 mm, the step-1 result. Not modified.
        margin: Voxels to add on every side, as far as the array goes.

    Returns:
        One slice per axis.

    Raises:
        NoSpineError: The map is empty.
    """
    box = foreground_box(labels, margin_vox=margin)
    if box is None:
        raise NoSpineError(
            "The step-1 result is empty: no spine was found. Check that the image shows the spine, or draw a disc."
        )
    return box
