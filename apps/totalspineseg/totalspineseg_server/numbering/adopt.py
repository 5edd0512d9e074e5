"""Name pieces that the chain model left out but that obviously belong to a named level."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from totalspineseg_server.anatomy import Kind
from totalspineseg_server.numbering.evidence import Evidence, Item
from totalspineseg_server.numbering.solver import FALSE, Path
from totalspineseg_server.transforms.labeling import UNNAMED, Naming

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
