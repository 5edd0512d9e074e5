"""Renumber a labeled map around the one level a reader renamed: new names, the same voxels, no network."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lib.anatomy import BACKGROUND, BY_CODE, C1, CANAL, CORD, SACRUM, Kind
from lib.geometry import LabelArray, Volume
from lib.numbering.chain import Numbering
from lib.numbering.evidence import Pin, Step1Names
from lib.numbering.label import name_map
from lib.numbering.weights import ORDER
from lib.transforms.pieces import Step
from lib.trust import UNMEASURED, Trust

RENAMED_SHARE: Final = 0.7
"""A segment is one of the prediction when they share this much of both; the rest is redrawn border."""
RENAMED_VOXELS: Final = 20
"""Fewer voxels are a brush stroke."""


SLIVER: Final = 0.1
"""What has less than this share of the structure that would get the same name is a cut-off process: it keeps its
own."""


@dataclass(frozen=True)
class Drawn:
    """What a network drew and what it was named: enough to name it again.

    Attributes:
        raw: Classes of the step's network, uint8 nearest RAS.
        labels: Codes it was given, on the same grid.
        step: 1 or 2.
        step1: Of a step-2 map, what step 1 had named there.
        trust: What was known of the network that drew it.
    """

    raw: Volume
    labels: LabelArray
    step: Step
    step1: Step1Names | None = None
    trust: Trust = UNMEASURED


@dataclass(frozen=True)
class Recognized:
    """A submitted segment that is one of the prediction's, whatever it is called.

    Attributes:
        old: Code it had.
        new: Code it has now.
        value: Its value in the submitted map.
        voxels: Voxels that both have.
    """

    old: int
    new: int
    value: int
    voxels: int

    @property
    def renamed(self) -> bool:
        """Whether a reader changed its name."""
        return self.old != self.new


def recognize(old: LabelArray, new: LabelArray, code_of: Mapping[int, int]) -> tuple[Recognized, ...]:
    """Segments that are those of a prediction; redrawn borders do not matter.

    Args:
        old: Codes (X, Y, Z) as predicted. Not modified.
        new: Submitted map on the same grid, one value a segment. Not modified.
        code_of: Code that each value of ``new`` stands for now; several may stand for one.

    Returns:
        The recognized segments, the largest first; a disc is none of the prediction's bones. The cord and the canal
        have no level and are not among them.
    """
    drawn = np.flatnonzero((new != BACKGROUND) | (old != BACKGROUND))
    pairs = new.ravel()[drawn].astype(np.intp) << 8 | old.ravel()[drawn]
    both = np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
    sizes, segment_sizes = both.sum(axis=0), both.sum(axis=1)
    found = []
    for value, code in code_of.items():
        below = both[value].copy()
        below[[BACKGROUND, CORD, CANAL]] = 0
        was, voxels = int(below.argmax()), int(below.max())
        if voxels < RENAMED_VOXELS or not _alike(was, code):
            continue
        if voxels >= RENAMED_SHARE * max(int(sizes[was]), int(segment_sizes[value])):
            found.append(Recognized(was, code, value, voxels))
    return tuple(sorted(found, key=lambda recognized: -recognized.voxels))


def _alike(one: int, other: int) -> bool:
    """Whether both are discs, or both are bone."""
    kinds = [BY_CODE[code].kind if code in BY_CODE else None for code in (one, other)]
    if None in kinds or {Kind.CORD, Kind.CANAL} & set(kinds):
        return False
    return (kinds[0] is Kind.DISC) == (kinds[1] is Kind.DISC)


def renumber(
    drawn: Drawn, renamed: Mapping[int, int], *, localizer: npt.NDArray[np.integer[Any]] | None = None
) -> tuple[Mapping[int, int], Numbering] | None:
    """Old name -> new name of every level, once the renamed ones carry theirs.

    All evidence of the network's map counts, a reader's word outweighs it. Both ends of the column keep their names, as
    they look like nothing else: the atlas is no axis because a thoracic level was renamed, then a level is missing
    between.

    Args:
        drawn: What the network drew. Not modified.
        renamed: Old code -> new code of what a reader renamed.
        localizer: Codes of another series on the same grid, or None. Not modified.

    Returns:
        The names and the numbering behind them; None where they contradict each other: two levels would get one name or
        change places, or a renamed one does not get its own.
    """
    wanted = {code: code for code in (C1, SACRUM) if drawn.step == 2} | dict(renamed)
    pins = [pin for old, new in wanted.items() if (pin := _pin(drawn, old, new)) is not None]
    codes, numbering = name_map(drawn.raw, drawn.step, pins=pins, localizer=localizer, trust=drawn.trust)
    if numbering is None:
        return None
    names: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for code in np.unique(drawn.labels).tolist():
        if code == BACKGROUND or BY_CODE[code].kind in (Kind.CORD, Kind.CANAL):
            continue
        if drawn.step == 1 and code == SACRUM:
            continue
        here = np.bincount(codes[drawn.labels == code], minlength=256)
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
    """Return whether the new names come in the order of the old ones: renaming moves no level past another."""
    new = [ORDER[names[code]] for code in sorted(names, key=ORDER.__getitem__)]
    return all(upper < lower for upper, lower in pairwise(new))


def _pin(drawn: Drawn, old: int, new: int) -> Pin | None:
    """The new name at the middle of what carries the old one; None where that is hardly there."""
    where = np.argwhere(drawn.labels == old)
    if len(where) < RENAMED_VOXELS:
        return None
    middle = where[((where - where.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    x, y, z, _ = (drawn.raw.affine @ np.array([*middle, 1.0])).tolist()
    return Pin(new, (x, y, z))
