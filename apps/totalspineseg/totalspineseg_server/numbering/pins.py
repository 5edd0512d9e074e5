"""Apply pins: levels that a reader fixes by a name and a point."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from totalspineseg_server.anatomy import BY_CODE, C1, LUMBAR, NAME_OF, SACRUM, THORACIC, Kind, column
from totalspineseg_server.numbering import numbering_messages
from totalspineseg_server.numbering.evidence import Evidence, Floats, Item, Pin
from totalspineseg_server.numbering.findings import Finding
from totalspineseg_server.numbering.solver import SACRUM_LENGTH_MM
from totalspineseg_server.numbering.states import HEIGHT_MM
from totalspineseg_server.transforms.canal import Ruler
from totalspineseg_server.transforms.pieces import Pieces

PIN_REACH_MM: Final = 15.0
"""Largest distance from a pin to the piece that it names (half a lumbar level)."""
AROUND_MM: Final = 70.0
"""Largest distance from a pin to the center of the disc that it names (the tip of a lumbar spinous process)."""
INSIDE_MM: Final = 2.0
"""Distance from a piece's voxels within which a point lies in the piece, because outlines are not more precise."""
SAME_LEVEL: Final = 0.6
"""Largest distance along the canal between a point and the middle of a piece at its level, as a share of the level's
height. Inside a body, no point is farther than half of it; the middle of the next body is a whole level away."""
BORDERS: Final = 0.85
"""Largest distance along the canal from a point in a vertebra to a disc that borders it, as a share of its height. From
its middle, the next disc is half a height away, and the one after that one and a half."""
BORDERS_SACRUM_MM: Final = 40.0
"""The same limit for a point in the sacrum, mm."""


def with_pins(
    evidence: Evidence, pieces: Pieces, pins: Sequence[Pin], *, affine: Floats, ruler: Ruler
) -> tuple[Evidence, tuple[int, ...]]:
    """Return the evidence with the pins of readers.

    Each pin goes to the piece of its kind that it lies in or beside, at the same level. A pin in processes without a
    body (the ring of an atlas whose anterior arch is missing) names these, not the body beside them. If there is no
    such piece (as in a step-1 map, which has no single vertebrae), a point in a vertebra's body names the discs above
    and below.

    Args:
        evidence: From ``gather``.
        pieces: The pieces that it describes.
        pins: Levels that a reader fixed. Not modified.
        affine: (4, 4) voxel -> RAS mm.
        ruler: Canal of the map.

    Returns:
        The evidence, and the codes of pins that meet no structure.

    Raises:
        ValueError: A pin does not name a level.
    """
    items, unmet, loose = list(evidence.items), [], dict[int, int]()
    for pin in pins:
        structure = BY_CODE.get(pin.code)
        if structure is None or structure.kind in (Kind.CORD, Kind.CANAL):
            raise ValueError(f"a pin must name a vertebra, a disc or the sacrum, got code {pin.code!r}")
        point = (np.linalg.inv(affine) @ np.array([*pin.point_mm, 1.0]))[:3]
        if structure.kind is Kind.VERTEBRA and (piece := _loose_at(evidence, pieces, point)) is not None:
            loose[piece] = pin.code
            continue
        found = _nearest(items, pieces, pin.code, point, ruler)
        named = {} if found is None else {found: frozenset({pin.code})}
        if structure.kind is not Kind.DISC and not named:
            named = _bordering(items, pieces, pin.code, point, ruler)
        for k, codes in named.items():
            items[k] = replace(items[k], pin=codes)
        if not named:
            unmet.append(pin.code)
    return replace(evidence, items=tuple(items), pinned_loose=loose), tuple(unmet)


def _loose_at(evidence: Evidence, pieces: Pieces, point_vox: Floats) -> int | None:
    """Return the index of the processes without a body in whose voxels a point lies, or None."""
    voxel = tuple(np.round(point_vox).astype(int))
    if pieces.vertebra_map is None or not all(0 <= v < n for v, n in zip(voxel, pieces.shape, strict=True)):
        return None
    index = int(pieces.vertebra_map[voxel]) - 1
    return index if index in evidence.loose else None


def unmet_finding(code: int) -> Finding:
    """Return the finding about a pin that meets no structure."""
    return Finding("pin_unmet", code, numbering_messages.PIN_UNMET.format(name=NAME_OF[code]))


def _bordering(
    items: Sequence[Item], pieces: Pieces, code: int, point_vox: Floats, ruler: Ruler
) -> dict[int, frozenset[int]]:
    """Return the discs above and below a point in a vertebra's body -> their possible codes, over all variants."""
    point = point_vox * ruler.spacing_mm
    place_mm = ruler.place(point)
    if code == C1:
        # The ring is inclined: from front to back it goes down by as much as the dens is high.
        near = (k for k, item in enumerate(items) if item.is_c1 and abs(item.place_mm - place_mm) <= HEIGHT_MM[C1])
        return {k: frozenset({C1}) for k in near}
    if not ruler.is_anterior(point_vox):
        # Processes hang down beside other vertebrae, so they do not count.
        return {}
    above, below = _neighbors(code)
    reach_mm = BORDERS_SACRUM_MM if code == SACRUM else BORDERS * HEIGHT_MM[code]
    discs = []
    for k, item in enumerate(items):
        if item.kind is Kind.DISC:
            center = np.array(pieces.discs[item.index].centroid_vox) * ruler.spacing_mm
            if np.linalg.norm(center - point) <= AROUND_MM:
                discs.append(k)
    upper = [k for k in discs if 0 < place_mm - items[k].place_mm <= reach_mm]
    lower = [k for k in discs if 0 <= items[k].place_mm - place_mm <= reach_mm]
    named = {upper[-1]: above} if upper and above else {}
    if lower and below:
        named[lower[0]] = below
    return named


def _neighbors(code: int) -> tuple[frozenset[int], frozenset[int]]:
    """Return the codes of the discs above and below a vertebra or the sacrum, in any variant."""
    above, below = set[int](), set[int]()
    for thoracic in (11, 12, 13):
        for lumbar in (4, 5, 6):
            spine = column(thoracic, lumbar)
            row = (*spine.vertebrae, SACRUM)
            if code in row:
                place = row.index(code)
                above |= {disc for disc in spine.discs[place - 1 : place] if disc is not None}
                below |= {disc for disc in spine.discs[place : place + 1] if disc is not None}
    return frozenset(above), frozenset(below)


def _nearest(items: Sequence[Item], pieces: Pieces, code: int, point_vox: Floats, ruler: Ruler) -> int | None:
    best, best_mm = None, PIN_REACH_MM
    disc, level_mm, spacing = BY_CODE[code].kind is Kind.DISC, _height_mm(code), ruler.spacing_mm
    place_mm = ruler.place(point_vox * spacing)
    for k, item in enumerate(items):
        if (item.kind is Kind.DISC) != disc or item.index < 0:
            continue
        numbered = pieces.disc_map if disc else pieces.vertebra_map
        piece = (pieces.discs if disc else pieces.vertebrae)[item.index]
        low = np.array([s.start for s in piece.box])
        high = np.array([s.stop - 1 for s in piece.box])
        away = float(np.linalg.norm((point_vox - np.clip(point_vox, low, high)) * spacing))
        if away >= best_mm or numbered is None:
            continue
        xyz = np.argwhere(numbered[piece.box] == item.index + 1) + low
        away = float(np.sqrt((((xyz - point_vox) * spacing) ** 2).sum(axis=1).min()))
        if away < best_mm and (away <= INSIDE_MM or abs(item.place_mm - place_mm) <= SAME_LEVEL * level_mm):
            best, best_mm = k, away
    return best


def _height_mm(code: int) -> float:
    """Return the height of a level at the usual size: for a disc with the vertebra above, for the sacrum its length."""
    spine = column(len(THORACIC), len(LUMBAR))
    above = {disc: vertebra for vertebra, disc in zip(spine.vertebrae, spine.discs, strict=True) if disc is not None}
    return SACRUM_LENGTH_MM if code == SACRUM else HEIGHT_MM[above.get(code, code)]
