"""Renumber a labeled map around the level that a reader renamed: with new names and the same voxels, without a
network."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Final

import numpy as np

from totalspineseg_server.anatomy import BACKGROUND, BY_CODE, C1, CANAL, CORD, SACRUM, Kind
from totalspineseg_server.geometry import LabelArray, Volume
from totalspineseg_server.numbering.chain import Numbering
from totalspineseg_server.numbering.evidence import Pin, Step1Names
from totalspineseg_server.numbering.evidence_weights import ORDER
from totalspineseg_server.numbering.naming import name_map
from totalspineseg_server.transforms.pieces import Step
from totalspineseg_server.trust import UNMEASURED, Trust

RENAMED_VOXELS: Final = 20
"""Smallest number of voxels of a segment; fewer are only a brush stroke."""
SLIVER: Final = 0.1
"""If two structures would get the same name, one with less than this share of the other is a cut-off process and keeps
its name."""


@dataclass(frozen=True)
class NamedMap:
    """A network's map and its names: all that is needed to name it again.

    Attributes:
        raw: Classes of the step's network, uint8 nearest RAS.
        labels: Codes of the structures, on the same grid.
        step: 1 or 2.
        step1: Names of step 1 there; only for a step-2 map.
        trust: Errors of the network as they were measured at that time.
    """

    raw: Volume
    labels: LabelArray
    step: Step
    step1: Step1Names | None = None
    trust: Trust = UNMEASURED


def renumber(named: NamedMap, renamed: Mapping[int, int]) -> tuple[Mapping[int, int], Numbering] | None:
    """Name every level again after a reader renamed some of them.

    All evidence of the network's map counts, but the reader's names outweigh it. Both ends of the column keep their
    names, because nothing else looks like them: if a thoracic level is renamed, the atlas does not become an axis;
    instead a level is missing in between.

    Args:
        named: The network's map. Not modified.
        renamed: Old code -> new code of the levels that a reader renamed. Not modified.

    Returns:
        Old code -> new code of every level, and the numbering behind them. None if there is a contradiction: if two
        levels would get the same name or change places, or if a renamed level would not get its new name.
    """
    wanted = {code: code for code in (C1, SACRUM) if named.step == 2} | dict(renamed)
    pins = [pin for old, new in wanted.items() if (pin := pin_of(named, old, new)) is not None]
    codes, numbering = name_map(named.raw, named.step, pins=pins, trust=named.trust)
    if numbering is None:
        return None
    names: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for code in np.unique(named.labels).tolist():
        if code == BACKGROUND or BY_CODE[code].kind in (Kind.CORD, Kind.CANAL):
            continue
        if named.step == 1 and code == SACRUM:
            continue
        here = np.bincount(codes[named.labels == code], minlength=256)
        here[[BACKGROUND, CORD, CANAL]] = 0
        names[code], sizes[code] = (int(here.argmax()), int(here.max())) if here.any() else (code, 0)
    for code in list(names):
        rivals = [sizes[other] for other in names if other != code and names[other] == names[code]]
        if rivals and sizes[code] < SLIVER * max(rivals):
            names[code] = code
    if not _in_order(names) or any(names.get(old) != new for old, new in renamed.items()):
        return None
    return MappingProxyType(names), numbering


def _in_order(names: Mapping[int, int]) -> bool:
    """Return whether the new names are in the order of the old ones, because renaming moves no level past another."""
    new = [ORDER[names[code]] for code in sorted(names, key=ORDER.__getitem__)]
    return all(upper < lower for upper, lower in pairwise(new))


def pin_of(named: NamedMap, old: int, new: int) -> Pin | None:
    """Return a pin with the new name at the middle of the structure with the old name; None if there is hardly any of
    it."""
    where = np.argwhere(named.labels == old)
    if len(where) < RENAMED_VOXELS:
        return None
    middle = where[((where - where.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    x, y, z, _ = (named.raw.affine @ np.array([*middle, 1.0])).tolist()
    return Pin(new, (x, y, z))
