"""Name pieces that the chain model left without a name: parts of named levels, and vertebrae without a body in view."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from totalspineseg_server.anatomy import BY_CODE, PARITY, Kind, Parity
from totalspineseg_server.numbering.evidence import Evidence, Item, odd_share
from totalspineseg_server.numbering.solver import FALSE, Path
from totalspineseg_server.numbering.states import HEIGHT_MM
from totalspineseg_server.transforms.labeling import UNNAMED, Naming
from totalspineseg_server.transforms.pieces import Piece, Pieces

DISC_REACH: Final = 0.22
"""A left-out disc piece that is this close to a named disc belongs to it, as a share of the distance between
neighboring discs: the halves of a split disc lie at the same height, a false disc inside a vertebra half a level
away."""
VERTEBRA_REACH: Final = 0.6
"""The same for a vertebra: the halves of a body that a false disc cuts are half a level apart."""
OTHER_CLASS_REACH: Final = 0.45
OTHER_CLASS_SHARE: Final = 0.5
"""The same for a piece of the other odd/even class, as when a network draws a part of a body in the class of its
neighbor: two parts of a body are half its height apart. Above this share of a usual vertebra's volume, it may be a
vertebra of its own."""
USUAL_LEVEL_MM: Final = 22.0
"""Distance between neighbors if too few are in view to measure it."""
DROP: Final = (0.1, 1.1)
"""How far processes lie below the body of their vertebra, as a share of a level's height: 0.2 in the neck, up to one
level in the middle of the chest. If a vertebra is cut off, its lowest part remains."""
CENTER_COST: Final = 0.2
"""Weight of the distance from the middle of that range, inside the range."""
PARITY_COST: Final = 1.5
"""Cost of a name that does not fit the odd/even class of a fragment, in levels of distance."""
TAKEN_COST: Final = 0.5
"""Cost of a name whose vertebra has a body in view, in levels of distance."""
SWOLLEN: Final = 1.35
"""A vertebra that would have more than this times the usual size with the fragment (neighbors differ by 5-10 %) most
probably has its own processes already, if it also reaches as far back as the fragment's middle: in a slab without
pedicles, no process is connected with its body, so that the usual size is that of a body."""
SWOLLEN_COST: Final = 1.5
"""Additional cost of its name: as much as a wrong odd/even class."""
MAX_COST: Final = 2.0
"""Largest cost of a name that is given to a fragment: that of a wrong class and half a level."""


def adopt(naming: Naming, evidence: Evidence, path: Path) -> Naming:
    """Give left-out items the name of a neighbor of their kind.

    Args:
        naming: Names of the pieces. Not modified.
        evidence: From ``gather``.
        path: Code of each item.

    Returns:
        A naming in which those items have names; nothing else changes.
    """
    discs, vertebrae = list(naming.discs), list(naming.vertebrae)
    for item, code in zip(evidence.items, path, strict=True):
        names = discs if item.kind is Kind.DISC else vertebrae
        if code == FALSE and item.index >= 0:
            names[item.index] = _owner(item, evidence, path)
    for item in evidence.specks:
        names = discs if item.kind is Kind.DISC else vertebrae
        names[item.index] = _owner(item, evidence, path)
    return Naming(tuple(discs), tuple(vertebrae))


def _owner(item: Item, evidence: Evidence, path: Path) -> int:
    same = [(i, c) for i, c in zip(evidence.items, path, strict=True) if c != FALSE and i.kind is item.kind]
    if not same:
        return UNNAMED
    places = np.array(sorted({i.place_mm for i, _ in same}))
    around = np.argsort(np.abs(places - item.place_mm))[:4]
    steps = np.diff(np.sort(places[around]))
    level = float(np.median(steps)) if steps.size else USUAL_LEVEL_MM
    nearest, code = min(same, key=lambda pair: abs(pair[0].place_mm - item.place_mm))
    away = abs(nearest.place_mm - item.place_mm)
    if item.kind is Kind.DISC:
        return code if away <= DISC_REACH * level else UNNAMED
    alike = item.odd is None or nearest.odd is None or abs(item.odd - nearest.odd) < 0.5
    if not alike and (item.is_far or item.volume_mm3 > OTHER_CLASS_SHARE * _usual(same)):
        return UNNAMED
    return code if away <= (VERTEBRA_REACH if alike else OTHER_CLASS_REACH) * level else UNNAMED


def _usual(named: Sequence[tuple[Item, int]]) -> float:
    """Return the usual volume of a level that several items may be parts of, mm3."""
    volumes: dict[int, float] = {}
    for item, code in named:
        volumes[code] = volumes.get(code, 0.0) + item.volume_mm3
    return float(np.median(list(volumes.values())))


def name_loose(
    naming: Naming, pieces: Pieces, evidence: Evidence, path: Path, depths_mm: Mapping[int, float]
) -> Naming:
    """Assign fragments without a body to the vertebrae to which they most probably belong.

    Args:
        naming: Names of all other pieces. Not modified.
        pieces: The pieces.
        evidence: From ``gather``.
        path: Code of each item.
        depths_mm: Code -> place along the column at scale 1, for the column of the path.

    Returns:
        The naming with names for the fragments; it is unchanged if there are no fragments, or if nothing else has a
        name.
    """
    named = [(item, code) for item, code in zip(evidence.items, path, strict=True) if code in depths_mm]
    if not evidence.loose or not named:
        return naming
    places = _places(named, depths_mm)
    swapped = _swapped(named)
    vertebrae = list(naming.vertebrae)
    taken: dict[int, int] = {}
    back: dict[int, int] = {}
    for piece, code in zip(pieces.vertebrae, naming.vertebrae, strict=True):
        if code != UNNAMED and piece.kind is Kind.VERTEBRA:
            taken[code] = taken.get(code, 0) + piece.voxels
            back[code] = min(back.get(code, piece.box[1].start), piece.box[1].start)
    usual = float(np.median(list(taken.values()))) if taken else np.inf
    for k, place in evidence.loose.items():
        piece = pieces.vertebrae[k]
        if k in evidence.pinned_loose:
            vertebrae[k] = evidence.pinned_loose[k]
            continue
        costs = {code: _cost(piece, place, code, places[code], swapped) for code in places}
        for code in costs.keys() & taken.keys():
            swollen = taken[code] + piece.voxels > SWOLLEN * max(usual, taken[code])
            costs[code] += TAKEN_COST + SWOLLEN_COST * (swollen and back[code] <= piece.centroid_vox[1])
        best = min(costs, key=lambda code: costs[code])
        vertebrae[k] = best if costs[best] <= MAX_COST else UNNAMED
    return Naming(naming.discs, tuple(vertebrae))


def _places(named: list[tuple[Item, int]], depths_mm: Mapping[int, float]) -> dict[int, float]:
    """Return the place along the canal where the body of each vertebra is, or would be, mm."""
    depth = np.array([depths_mm[code] for _, code in named])
    place = np.array([item.place_mm for item, _ in named])
    span = depth[-1] - depth[0]
    scale = float((place[-1] - place[0]) / span) if span > 0 else 1.0
    result = {}
    for code, at in depths_mm.items():
        if BY_CODE[code].kind is not Kind.VERTEBRA:
            continue
        inside = float(np.interp(at, depth, place))
        result[code] = inside + scale * (min(0.0, at - depth[0]) + max(0.0, at - depth[-1]))
    return result


def _swapped(named: list[tuple[Item, int]]) -> bool:
    """Return whether the map has the class odd at even positions."""
    votes = 0.0
    for item, code in named:
        if item.odd is not None and code in PARITY:
            as_named = item.odd if PARITY[code] is Parity.ODD else 1 - item.odd
            votes += as_named - 0.5
    return votes < 0


def _cost(piece: Piece, place_mm: float, code: int, body_mm: float, swapped: bool) -> float:
    drop = (place_mm - body_mm) / HEIGHT_MM[code]
    away = max(DROP[0] - drop, 0.0, drop - DROP[1]) + CENTER_COST * abs(drop - sum(DROP) / 2)
    odd = odd_share(piece)
    if odd is None:
        return away
    right = odd if (PARITY[code] is Parity.ODD) != swapped else 1 - odd
    return away + PARITY_COST * (1 - right)
