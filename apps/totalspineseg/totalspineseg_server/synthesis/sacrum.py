"""Draw the sacrum and the coccyx into a label map and a map of tissues."""

import numpy as np
from numpy.typing import NDArray

from totalspineseg_server import anatomy
from totalspineseg_server.synthesis.column import BentColumn, Segment
from totalspineseg_server.synthesis.raster import Raster
from totalspineseg_server.synthesis.shapes import Local, capsule, outline
from totalspineseg_server.synthesis.tissues import Tissue

Codes = NDArray[np.uint8]

_COCCYX_MM = 42.0
"""Length of the coccyx along its curve. Source: Woon et al., Eur Spine J 22(4), 2013, 863-870: 44 mm in men, 40 mm in
women."""


_DISC_TISSUES = (Tissue.ANNULUS, Tissue.SACRAL_DISC, Tissue.NUCLEUS)
"""Tissues of rudimentary discs: dark like most old discs, like marrow, or bright; all discs of a person are alike."""
_PLATE_MM = 0.9
"""Thickness of the cortical bone above and below a rudimentary disc."""


def draw_sacrum(rng: np.random.Generator, labels: Codes, tissues: Codes, column: BentColumn, raster: Raster) -> None:
    """Draw S1 .. S5 with alae, rudimentary discs between them, and the bone behind the sacral canal."""
    filling = _DISC_TISSUES[int(rng.integers(len(_DISC_TISSUES)))]
    for number, segment in enumerate(column.sacrum):
        half, w, d = segment.height / 2, segment.width / 2, segment.depth
        box = raster.box(segment.frame, (-w - 5, -d / 2 - 40, -half - 6), (w + 5, d / 2 + 5, half + 6))
        if box is None:
            continue
        local = raster.local(segment.frame, box)
        part = _sacral_part(local, segment, number)
        labels[box][part] = anatomy.SACRUM
        tissues[box][part] = Tissue.MARROW
    for number, segment in enumerate(column.sacrum[:-1]):
        _draw_gap(labels, tissues, segment, number, raster, filling)
    _draw_coccyx(tissues, column, raster)


def _draw_coccyx(tissues: Codes, column: BentColumn, raster: Raster) -> None:
    """Draw the coccyx below S5, bending forward, in tissues only: the label table has no name for it."""
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


def _draw_gap(labels: Codes, tissues: Codes, segment: Segment, number: int, raster: Raster, filling: Tissue) -> None:
    """Draw the rudimentary disc below a segment between two plates of cortical bone; its label stays the sacrum."""
    low, thick = -segment.height / 2, segment.gap / 2
    width, depth = (0.5 - 0.03 * number) * segment.width, 0.88 * segment.depth
    reach = thick + 2 * _PLATE_MM
    box = raster.box(segment.frame, (-width / 2, -depth / 2, low - reach), (width / 2, depth / 2, low + reach))
    if box is None or segment.gap <= 0:
        return
    local = raster.local(segment.frame, box)
    inside = (outline(local, width, depth) < 1) & (labels[box] == anatomy.SACRUM)
    off = np.abs(local.superior - low)
    tissues[box][inside & (off < thick + _PLATE_MM)] = Tissue.CORTICAL
    tissues[box][inside & (off < thick)] = filling


def _sacral_part(local: Local, segment: Segment, number: int) -> NDArray[np.bool_]:
    half, w, d = segment.height / 2, segment.width / 2, segment.depth
    narrow = 1 - 0.12 * (half - local.superior) / segment.height  # The sacrum tapers downward.
    tall = np.abs(local.superior) < half + 0.6
    core = (outline(local, 0.52 * segment.width, d) < narrow**2) & tall
    side = np.abs(local.right)
    drop = np.clip(side - 0.2 * w, 0, None)  # The alae slope backward and sideways.
    wing = (side < w * narrow) & (np.abs(local.anterior + 0.3 * drop + 0.12 * d) < 0.42 * d + 2) & tall
    hole = (side - 0.42 * w) ** 2 + (local.superior + half) ** 2 < 16.0
    back = -(d / 2 + 15.0 * (1 - 0.12 * number))
    plate = (np.abs(local.anterior - back + 0.25 * side) < 4.0) & (side < 0.42 * w) & tall
    walls = (np.abs(side - 0.33 * w) < 5) & (local.anterior < -d / 2 + 4) & (local.anterior > back) & tall
    crest = capsule(local, (0, back - 3, -half * 0.6), (0, back - 8, half * 0.4), 3.5) & (number < 4)
    return np.asarray(core | (wing & ~hole) | plate | walls | crest)
