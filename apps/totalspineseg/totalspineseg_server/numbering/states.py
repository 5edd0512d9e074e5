"""List the places of a piece in the column: a tree of slots that contains every variant once.

Columns with 11, 12 or 13 thoracic and 4, 5 or 6 lumbar vertebrae share their upper part. In the tree, each slot has one
slot above it, and the variants branch where their anatomy differs. A path down the tree is a column.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import (
    BACKGROUND,
    C1,
    C2,
    CERVICAL,
    LUMBAR,
    PARITY,
    SACRUM,
    THORACIC,
    Kind,
    Parity,
    column,
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

THORACIC_PRIOR: Final[Mapping[int, float]] = MappingProxyType({11: 0.010, 12: 0.978, 13: 0.012})
"""Share of people by number of thoracic (rib-bearing) vertebrae; each of the two variants is seen in 1-2 %.

Source: Carrino et al., Radiology 2011 (147 whole-spine MRI); Yan et al., Eur Spine J 2018 (thoracolumbar
transitional vertebrae). Rounded; the posterior hardly depends on the second digit.
"""
LUMBAR_PRIOR: Final[Mapping[int, float]] = MappingProxyType({4: 0.020, 5: 0.940, 6: 0.040})
"""Share of people by number of lumbar vertebrae. Source: Tins and Balain, Insights Imaging 2016 (24 presacral vertebrae
in about 92 %, 25 in 5 %, 23 in 3 %, thoracic variants included); Carrino et al., Radiology 2011."""

USUAL: Final = (12, 5)
"""Number of thoracic and of lumbar vertebrae in most people."""

_CERVICAL_MM = (17.0, 20.0, 16.5, 16.5, 16.5, 17.0, 18.0)
_THORACIC_MM = (19.5, 20.0, 20.5, 21.0, 21.5, 22.0, 22.5, 23.0, 23.5, 24.5, 26.0, 28.0, 29.0)
_LUMBAR_MM = (31.5, 33.0, 34.0, 35.5, 36.5, 36.5)
HEIGHT_MM: Final[Mapping[int, float]] = MappingProxyType(
    dict(zip(CERVICAL + THORACIC + LUMBAR, _CERVICAL_MM + _THORACIC_MM + _LUMBAR_MM, strict=True))
)
"""Height of a vertebra with the disc below it, mm, adult: mid disc to mid disc.

Source: Busscher et al., Eur Spine J 2010 (C3 to L5, bodies and discs measured on CT), rounded; C1 and C2 from the
project's synthetic columns. A scale per scan (``SCALES``) accounts for body size.
"""
LORDOSIS: Final = (0.96, 0.91, 0.85)
"""Length of the last three lumbar levels along the canal, relative to their height: the canal runs on the inner side of
the lordosis.

Source: the labels of 24 lumbar patients of SPIDER (van der Graaf et al., Sci Data 2024), where they are 0.93, 0.83 and
0.72 (medians, relative to L1 and L2); the roots of these, because spines that are straight have no such bend.
"""
S1_CENTER_MM: Final = 15.0
"""Distance from the L5-S disc to the middle of the body of S1 along the canal, mm."""
SACRUM_CENTER_MM: Final = 32.0
"""Distance from the L5-S disc to the middle of the sacrum along the canal, mm; it varies with the part in view."""

NO_LEVEL: Final = BACKGROUND
"""Code of a slot for something that networks take for a level, but that has no name."""
SKULL_BASE_MM: Final = 20.0
"""Distance from the skull base in front of the brainstem (clivus) to the middle of C1 along the canal, mm."""
DENS_BASE_MM: Final = 19.0
"""Distance from the base of the dens to the C2-C3 disc, mm. There the dens and the body of C2 grew together around a
disc, and most people keep a remnant of it."""

_WIDTH_CERVICAL_MM = 25.0
_WIDTH_T1_MM, _WIDTH_T12_MM, _WIDTH_L5_MM = 27.0, 39.0, 46.0


class ParityRule(Enum):
    """How the classes odd and even continue below an extra or a missing thoracic vertebra."""

    TABLE = "table"
    """The class follows the name: T13 and L1 have the same one."""
    POSITION = "position"
    """The class follows the position in the column: neighbors always differ."""


@dataclass(frozen=True)
class States:
    """All slots of all variants, as arrays over ``n`` slots.

    Attributes:
        code: Label code of each slot.
        disc: True for disc slots.
        unnamed: True for the slots without a name: the skull base above C1, and the base of the dens.
        s1: True for the slot of S1, where a piece separate from the rest of the sacrum may be drawn.
        odd: Parity class of vertebra slots (True = odd) under the slot's rule; False for the rest.
        usual: True for the slots of a column with 12 thoracic and 5 lumbar vertebrae.
        parent: The slot directly above; -1 for C1.
        prior: Share of columns that have this slot on this path.
        depth_mm: Place of the slot's center along the column of scale 1, mm below the top of C1.
        height_mm: Height of the level around the slot, mm at scale 1.
        width_mm: Lateral width of the disc or body, mm.
        ancestor: (n, jumps) slot ``k`` steps above, ``n`` (one past the end) if there is none.
        path_prior: (n, jumps) probability of getting from that ancestor to the slot: product of the branches.
        between: (n, jumps, 2) number of discs and of vertebrae strictly between them.
    """

    code: Ints
    disc: npt.NDArray[np.bool_]
    unnamed: npt.NDArray[np.bool_]
    s1: npt.NDArray[np.bool_]
    odd: npt.NDArray[np.bool_]
    usual: npt.NDArray[np.bool_]
    parent: Ints
    prior: Floats
    depth_mm: Floats
    height_mm: Floats
    width_mm: Floats
    ancestor: Ints
    path_prior: Floats
    between: Ints


@dataclass
class _Node:
    code: int
    kind: Kind
    odd: bool
    parent: int
    prior: float
    depth: float
    height: float
    usual: bool = False


def _slots(thoracic: int, lumbar: int, rule: ParityRule) -> list[tuple[int, Kind, bool, float, float]]:
    """Return (code, kind, odd, depth, height) from the skull base to the sacrum, whose first vertebra has a slot of its
    own."""
    spine = column(thoracic, lumbar)
    shorter = dict(zip(spine.vertebrae[-len(LORDOSIS) :], LORDOSIS, strict=True))
    rows: list[tuple[int, Kind, bool, float, float]] = []
    top = 0.0
    middle = HEIGHT_MM[C1] / 2
    rows.append((NO_LEVEL, Kind.VERTEBRA, False, middle - SKULL_BASE_MM, HEIGHT_MM[C1]))
    for position, (vertebra, disc) in enumerate(zip(spine.vertebrae, spine.discs, strict=True), start=1):
        height = HEIGHT_MM[vertebra] * shorter.get(vertebra, 1.0)
        odd = bool(position % 2) if rule is ParityRule.POSITION else PARITY[vertebra] is Parity.ODD
        rows.append((vertebra, Kind.VERTEBRA, odd, top + height / 2, height))
        top += height
        if vertebra == C1:
            rows.append((NO_LEVEL, Kind.DISC, False, top + HEIGHT_MM[C2] - DENS_BASE_MM, HEIGHT_MM[C2]))
        if disc is not None:
            rows.append((disc, Kind.DISC, False, top, height))
    rows.append((SACRUM, Kind.SACRUM, False, top + S1_CENTER_MM, 2 * S1_CENTER_MM))
    rows.append((SACRUM, Kind.SACRUM, False, top + SACRUM_CENTER_MM, 2 * SACRUM_CENTER_MM))
    return rows


def _grow() -> list[_Node]:
    """Merge the variants into a tree; slots are shared as long as code, parity and place are the same."""
    nodes: list[_Node] = []
    index: dict[tuple[int, int, bool, float], int] = {}
    for thoracic, thoracic_share in THORACIC_PRIOR.items():
        rules = (ParityRule.TABLE,) if thoracic == len(THORACIC) - 1 else tuple(ParityRule)
        for lumbar, lumbar_share in LUMBAR_PRIOR.items():
            for rule in rules:
                share = thoracic_share * lumbar_share / len(rules)
                parent = -1
                for code, kind, odd, depth, height in _slots(thoracic, lumbar, rule):
                    key = (parent, code, odd, depth)
                    if key not in index:
                        index[key] = len(nodes)
                        nodes.append(_Node(code, kind, odd, parent, 0.0, depth, height))
                    parent = index[key]
                    nodes[parent].prior += share
                    nodes[parent].usual |= (thoracic, lumbar) == USUAL
    return nodes


def _width(code: int) -> float:
    """Return the lateral width of a body, linear between landmarks of the column."""
    spine = column(len(THORACIC), len(LUMBAR))
    order = {c: i for i, c in enumerate(spine.vertebrae)}
    order |= {d: order[v] for v, d in zip(spine.vertebrae, spine.discs, strict=True) if d is not None}
    place = order.get(code, order[LUMBAR[-1]])
    known = [order[CERVICAL[1]], order[CERVICAL[-1]], order[THORACIC[11]], order[LUMBAR[-1]]]
    return float(np.interp(place, known, [_WIDTH_CERVICAL_MM, _WIDTH_T1_MM, _WIDTH_T12_MM, _WIDTH_L5_MM]))


@cache
def states(jumps: int) -> States:
    """Return the tree of slots.

    Args:
        jumps: Number of slots that a step down the column may span, plus one (0 stays in the slot).
    """
    nodes = _grow()
    count = len(nodes)
    parent = np.array([n.parent for n in nodes])
    prior = np.array([n.prior for n in nodes])
    disc = np.array([n.kind is Kind.DISC for n in nodes])
    ancestor = np.full((count, jumps), count)
    path_prior = np.zeros((count, jumps))
    between = np.zeros((count, jumps, 2), dtype=np.intp)
    for k in range(count):
        above, seen = k, [0, 0]
        for jump in range(jumps):
            if above < 0:
                break
            ancestor[k, jump] = above
            path_prior[k, jump] = prior[k] / prior[above]
            between[k, jump] = seen
            if jump and nodes[above].kind is not Kind.SACRUM and nodes[above].code != NO_LEVEL:
                seen[0 if disc[above] else 1] += 1
            above = int(parent[above])
    return States(
        code=np.array([n.code for n in nodes]),
        disc=disc,
        unnamed=np.array([n.code == NO_LEVEL for n in nodes]),
        s1=np.array([n.kind is Kind.SACRUM and n.height == 2 * S1_CENTER_MM for n in nodes]),
        odd=np.array([n.odd for n in nodes]),
        usual=np.array([n.usual for n in nodes]),
        parent=parent,
        prior=prior,
        depth_mm=np.array([n.depth for n in nodes]),
        height_mm=np.array([n.height for n in nodes]),
        width_mm=np.array([_width(n.code) for n in nodes]),
        ancestor=ancestor,
        path_prior=path_prior,
        between=between,
    )


Step = Literal[1, 2]


def observable(tree: States, step: Step) -> npt.NDArray[np.bool_]:
    """Return the slots for which a step's map can have a piece: all in step 2; discs, the dens and C1 in step 1."""
    if step == 1:
        return np.asarray(tree.disc | (tree.code == C1))
    return np.ones(tree.code.size, dtype=np.bool_)
