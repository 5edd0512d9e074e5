"""The sacrum and the tail bone below it, drawn into a label map and a map of tissues."""

import numpy as np
from numpy.typing import NDArray

from lib import anatomy
from lib.synthesis.column import BentColumn, Segment
from lib.synthesis.raster import Raster
from lib.synthesis.shapes import Local, capsule, outline
from lib.synthesis.tissues import Tissue

Codes = NDArray[np.uint8]

_COCCYX_MM = 42.0
"""Length along its curve. Source: Woon et al., Eur Spine J 22(4), 2013, 863-870: 44 mm in men, 40 mm in women."""


def draw_sacrum(labels: Codes, tissues: Codes, column: BentColumn, raster: Raster) -> None:
    """S1 .. S5 with alae, rudimentary discs between them, and the bone behind the sacral canal."""
    for number, segment in enumerate(column.sacrum):
        half, w, d = segment.height / 2, segment.width / 2, segment.depth
        box = raster.box(segment.frame, (-w - 5, -d / 2 - 40, -half - 6), (w + 5, d / 2 + 5, half + 6))
        if box is None:
            continue
        local = raster.local(segment.frame, box)
        part, gap = _sacral_part(local, segment, number)
        labels[box][part] = anatomy.SACRUM
        tissues[box][part] = Tissue.MARROW
        if number < len(column.sacrum) - 1:
            tissues[box][part & gap] = Tissue.SACRAL_DISC
    _draw_coccyx(tissues, column, raster)


def _draw_coccyx(tissues: Codes, column: BentColumn, raster: Raster) -> None:
    """The tail bone below S5, bending forward: tissue alone, the label table has no name for it."""
    last = column.sacrum[-1]
    long = _COCCYX_MM * column.scale
    box = raster.box(last.frame, (-12, -12, -last.height / 2 - long - 6), (12, long, 0))
    if box is None:
        return
    local = raster.local(last.frame, box)
    top = -last.height / 2
    bone = np.zeros(tissues[box].shape, bool)
    for first, radius in ((0.0, 6.0), (0.35, 5.0), (0.7, 3.5)):
        ends = [(0.0, 0.5 * long * t**1.5, top - long * t) for t in (first + 0.06, first + 0.28)]
        bone |= capsule(local, ends[0], ends[1], radius * column.scale)
    tissues[box][bone & (tissues[box] != Tissue.AIR)] = Tissue.OTHER_BONE


def _sacral_part(local: Local, segment: Segment, number: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    half, w, d = segment.height / 2, segment.width / 2, segment.depth
    narrow = 1 - 0.12 * (half - local.superior) / segment.height  # tapers downward
    tall = np.abs(local.superior) < half + 0.6
    core = (outline(local, 0.52 * segment.width, d) < narrow**2) & tall
    side = np.abs(local.right)
    drop = np.clip(side - 0.2 * w, 0, None)  # the alae fall back and sideways
    wing = (side < w * narrow) & (np.abs(local.anterior + 0.3 * drop + 0.12 * d) < 0.42 * d + 2) & tall
    hole = (side - 0.42 * w) ** 2 + (local.superior + half) ** 2 < 16.0
    back = -(d / 2 + 15.0 * (1 - 0.12 * number))
    plate = (np.abs(local.anterior - back + 0.25 * side) < 4.0) & (side < 0.42 * w) & tall
    walls = (np.abs(side - 0.33 * w) < 5) & (local.anterior < -d / 2 + 4) & (local.anterior > back) & tall
    crest = capsule(local, (0, back - 3, -half * 0.6), (0, back - 8, half * 0.4), 3.5) & (number < 4)
    gap = (local.superior < -half + 1.3) & (outline(local, 0.4 * segment.width, 0.75 * d) < 1)
    return (core | (wing & ~hole) | plate | walls | crest), np.asarray(gap)
