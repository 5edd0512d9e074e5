"""Define the constants of the model, and compute how well each piece fits each slot.

Everything is a likelihood ratio: how much more probable the evidence is if the piece belongs in the slot than if it
were a false component anywhere.
"""

import math
from collections.abc import Collection, Mapping
from functools import cache
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import (
    C1,
    DISC_L4_L5,
    DISC_L5_L6,
    DISC_L5_S,
    DISC_T12_L1,
    LANDMARK_DISCS,
    LUMBAR,
    SACRUM,
    THORACIC,
    Kind,
    column,
)
from totalspineseg_server.numbering.evidence import Item, Overlap
from totalspineseg_server.numbering.states import LUMBAR_PRIOR, THORACIC_PRIOR, Floats, States, states
from totalspineseg_server.trust import TILTED, Chances, Trust

JUMPS: Final = 11
"""Number of different steps from slot to slot (0 to 10 slots): up to five levels may have no piece."""
LOOKBACK: Final = 3
"""Largest distance between two consecutive pieces of the column, in pieces: there may be two false components in a row,
not counting specks."""

P_FALSE: Final[Mapping[Kind, float]] = MappingProxyType({Kind.DISC: 0.02, Kind.VERTEBRA: 0.01, Kind.SACRUM: 0.003})
"""Probability that a component of usual size is not real."""
P_MISSED: Final = 0.02
"""Probability that a disc in view has no component (fused, severely degenerated, missed by the network), or that a
vertebra has none with a body."""
P_NEXT_MISSED: Final = 0.3
"""Probability that the disc after a missed one at the end of the row is missed, too: what hides one (metal, a bad coil,
the end of the canal) hides its neighbors."""
P_NEXT_MISSED_WITHIN: Final = 0.1
"""The same for a disc or a vertebra between two pieces, where only metal or a void has this effect. Not less: a few
levels behind metal must stay more probable than one level of their length."""
LARGE_BONE_MM3: Final = 8000.0
"""Volume of a large vertebra or sacrum: a whole cervical vertebra, a third of a small sacrum."""
FALSE_IF_LARGE: Final = 0.1
"""Factor by which such a large component is less likely to be false, because nothing else in the image has that
size."""
P_SPLIT: Final = 0.02
"""Probability that the next component is another part of the same structure."""
FALSE_LANDMARK: Final = 0.05
"""Probability that a false disc has the class of any one landmark."""
REMNANTS: Final = ((0.25, 0.5, 0.1), (0.4, 0.25, 0.3))
"""Remnants of the disc between S1 and S2, which most people have and which has no name here. A disc below all others is
such a remnant with the second probability if it has less than the first share of their usual volume. The third number
is the probability that the network draws so little of the last disc."""
REMNANT_BELOW: Final = 3
"""Number of discs above the last one whose median volume is the usual volume."""
P_C1_CLASS_WRONG: Final = 0.01
"""Probability that what step 1 labels as C1 is not C1. It is low, because no other vertebra looks like this ring."""
P_S1_APART: Final[Mapping[Kind, float]] = MappingProxyType({Kind.VERTEBRA: 0.1, Kind.SACRUM: 0.02})
"""Probability that S1 is drawn as a vertebra, or as a separate piece of the sacrum: a disc between S1 and S2 is visible
in most people, and networks take the bone above it for a vertebra."""
P_S1_WHOLE: Final = 0.25
"""The same for a vertebra as large as ``LARGE_BONE_MM3``: the starter weights draw S1 so in 6 of 24 lumbar scans."""
P_S1_APART_UNMEASURED: Final = 0.0005
"""The same for networks that nobody has measured, as low as for a false vertebra of that size."""
P_SWALLOWED: Final = 0.1
"""Probability that the last lumbar vertebra is drawn as the upper part of the sacrum (and the disc below it not at
all), or as a separate piece of sacrum above that disc. Networks do so if a sacrum looks unlike all those that they have
seen."""
P_KIND_WRONG: Final = 0.01
"""Probability that the sacrum is drawn as a vertebra or a vertebra as the sacrum."""

CAREFUL: Final = Chances(own=0.87, above=0.15, below=0.15)
"""Chances for networks that nobody has measured: a landmark disc has its own class, or the disc above or below it does.
Measured networks (``Trust``) have better chances; the fewer scans were measured, the closer they are to these."""
LANDMARK_OTHER: Final = 0.02 / 3
"""Probability that a landmark disc has another landmark's class; if it has none of these either, its own is lost."""
LANDMARK_NEAR_2: Final = 0.07
"""Factor by which a landmark's class is rarer two levels from the landmark than on the next disc."""
LANDMARK_ALONE: Final = 1 / 3
"""Factor for a neighbor of a landmark whose own disc would be beyond the outermost disc in view, compared with a
landmark that moves within the view (own class lost, neighbor's present): the network must invent it."""
LANDMARK_COUNTED: Final = 0.5
"""The same for T12-L1 one level too low, on the uppermost disc in view, if that is the fifth above L5-S: networks seem
to count up from the sacrum. Of 24 synthetic lumbar scans with six lumbar vertebrae, six end with L1-L2; in four of
these it was T12-L1 for both networks (starter weights)."""
COUNTED_DISCS: Final = 1 + max(LUMBAR_PRIOR, key=lambda count: LUMBAR_PRIOR[count])
"""Number of discs from that disc to L5-S."""
LANDMARK_FAR: Final = 0.001
"""Probability that a plain disc farther away has a landmark's class."""

SCALES: Final = np.exp(np.linspace(-0.42, 0.30, 7))
"""Sizes of people relative to ``HEIGHT_MM``: 0.66 (a child of six) to 1.35."""
SCALE_SPREAD: Final = 0.17
"""Standard deviation of the logarithm of the scale over patients of all ages; adults alone vary by 0.08."""
SPACING_SPREAD: Final = 0.09
"""Standard deviation of the distance of two pieces, as a share of the expected one: varying levels, inexact centers."""
SPACING_MM: Final = 1.5
"""Standard deviation independent of the distance, mm: voxel size and ragged borders."""
CUT_SPREAD: Final = 0.3
"""Standard deviation that is added for a piece that the field of view cuts, as a share of the level's height: its
center is off by up to half."""
SACRUM_SPREAD_MM: Final = 10.0
"""Standard deviation that is added for the middle of the sacrum, mm: a third or all of the sacrum may be in view."""
SPLIT_SPREAD: Final = 0.12
"""Distance between the parts of one structure, as a share of the level's height."""
UNIT_MM: Final = 25.0
"""Length over which a false component could be anywhere, about a level; it makes densities comparable."""
P_ODD_SPACING: Final = 0.005
"""Probability that a distance follows no rule (because of collapsed or fused vertebrae, scoliosis, a missed canal)."""
ODD_STRETCH: Final = 1.3
"""Largest factor by which such a distance is longer than expected; if it is longer, a level was missed."""
ODD_SPACING_MM: Final = 80.0
"""Range of such distances."""

WIDTH_SPREAD: Final = 0.16
"""Standard deviation of the logarithm of a lateral width around ``States.width_mm``, patients and maps together."""
WIDTH_ITEMS: Final = 2.0
"""The errors of widths within a patient are correlated: all of them count as this many independent ones."""
SMALL: Final = 0.45
"""A component with less than this share of its neighbors' lateral width is more likely false."""
FALSE_IF_SMALL: Final = 12.0
"""Factor by which it is more likely false."""
FALSE_IF_TINY: Final = 60.0
"""The same factor below ``TINY`` of the neighbors' width: a speck."""
TINY: Final = 0.25

MAX_TILT: Final = 2.5
"""Largest deviation of an angle that counts, in standard deviations, because spines are straight, bend and slip."""

LOCALIZER_NEAR: Final = (1.0, 0.25, 0.03)
"""Support of a slot by an overlap with a structure of the localizer that is 0, 1 or 2 slots away, because patients
move."""
LOCALIZER_FLOOR: Final = 0.02
"""Probability that the localizer is wrong about a piece."""
LOCALIZER_ITEMS: Final = 5.0
"""A patient moves as a whole: all overlaps with one series count as this many independent ones. The probability of its
names counts once for all of them."""
PIN_WEIGHT: Final = 1e-15
"""Weight of every code but the pinned one: a reader's pin outweighs all other evidence."""

MOSTLY: Final = 0.5
"""Share of a disc's voxels in a landmark's class from which the disc counts as drawn as that landmark."""

_COLUMN = column(len(THORACIC), len(LUMBAR))


def _order() -> Mapping[int, int]:
    codes: list[int] = []
    for vertebra, disc in zip(_COLUMN.vertebrae, _COLUMN.discs, strict=True):
        codes += [vertebra] if disc is None else [vertebra, disc]
    return MappingProxyType({code: place for place, code in enumerate([*codes, SACRUM])})


ORDER: Final = _order()
"""Code -> place along a column that has the vertebrae of every variant."""


def missed_weight(count: npt.ArrayLike, following: float = P_NEXT_MISSED) -> Floats:
    """Return the weight of a number of structures missed in a row.

    Args:
        count: Whole numbers; 0 weighs 1. Not modified.
        following: Probability that the next one is missed, too.
    """
    count = np.asarray(count, dtype=np.float64)
    return np.where(count > 0, P_MISSED * following ** np.maximum(count - 1, 0), 1.0)


@cache
def _tree() -> States:
    return states(JUMPS)


@cache
def _landmark_table(discs_above: bool, discs_below: bool, counted: bool, trust: Trust) -> Floats:
    """Return the (slots, 1 + landmarks) log probability of each class (plain first) on a disc in each slot.

    Args:
        discs_above: Whether another disc above this one is in view.
        discs_below: The same below.
        counted: Whether it is the uppermost disc and the fifth above L5-S, where a T12-L1 may be counted.
        trust: What is known about the network's errors.
    """
    tree = _tree()
    count = tree.code.size
    table = np.zeros((count, 1 + len(LANDMARK_DISCS)))
    chances = [trust.chances(place, careful=CAREFUL) for place in range(len(LANDMARK_DISCS))]
    for k in np.flatnonzero(tree.disc):
        own = int(tree.code[k]) in LANDMARK_DISCS
        for place, landmark in enumerate(LANDMARK_DISCS, start=1):
            of = chances[place - 1]
            if tree.code[k] == landmark:
                table[k, place] = of.own
                continue
            away, is_above = _levels_between(int(k), landmark)
            near = of.below if is_above else of.above
            if not (discs_above if is_above else discs_below):
                near *= LANDMARK_ALONE * (1.0 - of.own)
            near = {1: near, 2: max(LANDMARK_FAR, LANDMARK_NEAR_2 * near)}.get(away, LANDMARK_FAR)
            if landmark == DISC_T12_L1 and counted and away == 1 and is_above:
                near = LANDMARK_COUNTED
            table[k, place] = min(LANDMARK_OTHER, near) if own else near
        table[k, 0] = max(LANDMARK_OTHER, 1.0 - table[k, 1:].sum())
    return np.asarray(np.log(table + 1e-12))


@cache
def _levels_between(slot: int, landmark: int) -> tuple[int, bool]:
    """Return the number of discs from a slot to the nearest landmark with a code, and whether that lies above; far if
    unrelated."""
    tree = _tree()
    best, above = tree.code.size, False
    for other in np.flatnonzero(tree.code == landmark):
        is_above = bool(tree.depth_mm[other] < tree.depth_mm[slot])
        upper, lower = (int(other), slot) if is_above else (slot, int(other))
        steps, node = 0, lower
        while node >= 0 and node != upper:
            steps += int(tree.disc[node])
            node = int(tree.parent[node])
        if node == upper and steps < best:
            best, above = steps, is_above
    return best, above


def fit(items: tuple[Item, ...], trust: Trust) -> Floats:
    """Return how well each piece fits each slot.

    Args:
        items: Pieces, superior to inferior.
        trust: What is known about the errors of the network that made the map.

    Returns:
        (items, 2, slots) likelihoods; the middle axis is whether the step-2 classes are swapped
        (odd marks the even positions), which is as likely as not.
    """
    tree = _tree()
    result = np.zeros((len(items), 2, tree.code.size))
    widths = sum(1 for item in items if not item.cut) or 1
    series = max((len(item.overlaps) for item in items), default=0)
    touched = [sum(1 for item in items if item.overlaps and item.overlaps[k].shares) for k in range(series)]
    discs = [k for k, item in enumerate(items) if item.kind is Kind.DISC]
    sacrum = any(item.kind is Kind.SACRUM or item.landmarks.get(DISC_L5_S, 0.0) > MOSTLY for item in items)
    counted = sacrum and len(discs) == COUNTED_DISCS
    for k, item in enumerate(items):
        base = _kind_fit(item, tree, trust)
        if item.landmarks:
            shares = np.array([item.landmarks.get(code, 0.0) for code in LANDMARK_DISCS])
            shares = np.concatenate([[max(0.0, 1.0 - shares.sum())], shares])
            base = base * _tilt_fit(item, tree, trust)
            table = _landmark_table(k != discs[0], k != discs[-1], counted and k == discs[0], trust)
            base = base * np.exp(np.where(tree.disc, table @ shares, 0.0))
        base = base * _width_fit(item, tree) ** min(1.0, WIDTH_ITEMS / widths)
        # C1 of step 1 has no overlaps, even if there are localizers.
        for overlap, count in zip(item.overlaps, touched, strict=bool(item.overlaps)):
            base = base * _localizer_fit(overlap, count, tree)
        base = base * (_remnant(items, k)[1] if trust.measured else 1.0)
        if item.pin:
            base = np.where(np.isin(tree.code, list(item.pin)), base, base * PIN_WEIGHT)
        result[k] = base * _parity_fit(item, tree, trust.parity)
    return result


def _kind_fit(item: Item, tree: States, trust: Trust) -> Floats:
    sacrum = (tree.code == SACRUM) & ~tree.s1
    if item.kind is Kind.DISC:
        return np.asarray(tree.disc, dtype=np.float64)
    if item.is_c1:
        return np.asarray(tree.code == C1, dtype=np.float64)
    vertebra = ~tree.disc & (tree.code != SACRUM)
    right, wrong = 1.0 - P_KIND_WRONG, P_KIND_WRONG
    values = (wrong, right) if item.kind is Kind.SACRUM else (right, wrong)
    apart = P_S1_APART[item.kind] if trust.measured else P_S1_APART_UNMEASURED
    if trust.measured and item.kind is Kind.VERTEBRA and item.volume_mm3 >= LARGE_BONE_MM3:
        apart = P_S1_WHOLE
    chances = np.asarray(vertebra * values[0] + sacrum * values[1] + tree.s1 * apart, dtype=np.float64)
    if trust.measured and item.kind is Kind.SACRUM:
        chances[tree.parent[tree.code == DISC_L5_S]] = P_SWALLOWED
    return chances


def _width_fit(item: Item, tree: States) -> Floats:
    """Return the fit of a width relative to the best slot; ``false_weight`` decides whether an odd size is false."""
    if item.cut or item.kind is not Kind.DISC:
        return np.ones(tree.code.size)
    away = np.log(item.width_mm / tree.width_mm) / WIDTH_SPREAD
    score = np.exp(-0.5 * np.minimum(away**2, 9.0))
    return np.asarray(score / score.max())


def _tilt_fit(item: Item, tree: States, trust: Trust) -> Floats:
    """Return how well a disc's angle fits the slots whose angles are known; 1 for all others."""
    result = np.ones(tree.code.size)
    if item.tilt_deg is None or item.cut:
        return result
    for code, tilts in zip(TILTED, trust.tilts, strict=True):
        if tilts.mean_deg is not None:
            away = (item.tilt_deg - tilts.mean_deg) / tilts.spread_deg
            same = (tree.code == code) | ((tree.code == DISC_L5_L6) & (code == DISC_L4_L5))
            result = np.where(same, math.exp(-0.5 * min(away**2, MAX_TILT**2)), result)
    return result


def _localizer_fit(overlap: Overlap, count: int, tree: States) -> Floats:
    """Return the best fit of an overlap over all names that its levels may have.

    Args:
        overlap: Overlap with one series.
        count: Number of pieces that overlap with it.
        tree: The slots.
    """
    if not overlap.shares:
        return np.ones(tree.code.size)
    names = {code: overlap.localizer.names.get(code) or {code: 1.0} for code in overlap.shares}
    moves = {ORDER[name] - ORDER[code] for code, chances in names.items() for name in chances}
    places = np.array([ORDER[int(code)] for code in tree.code])
    best = np.zeros(tree.code.size)
    exponent = LOCALIZER_ITEMS / (count if overlap.localizer.by_reader else max(count, LOCALIZER_ITEMS))
    for move in moves | {0}:
        score = np.full(tree.code.size, LOCALIZER_FLOOR)
        chance = 0.0
        for code, share in overlap.shares.items():
            away = np.abs(places - ORDER[code] - move)
            for distance, support in enumerate(LOCALIZER_NEAR):
                score += share * support * (away == distance)
            chance += share * sum(p for name, p in names[code].items() if ORDER[name] - ORDER[code] == move)
        best = np.maximum(best, score**exponent * chance ** (1.0 / count))
    return best


def _parity_fit(item: Item, tree: States, wrong: float) -> Floats:
    """Return the (2, slots) fit of the odd/even class: as the classes are named, and swapped."""
    if item.odd is None:
        return np.ones((2, tree.code.size))
    odd_class = wrong + (1 - 2 * wrong) * item.odd
    as_named = np.where(tree.odd, odd_class, 1 - odd_class)
    sacrum = tree.code == SACRUM
    return np.stack([np.where(sacrum, 0.5, as_named), np.where(sacrum, 0.5, 1 - as_named)])


def _remnant(items: tuple[Item, ...], k: int) -> tuple[float, float]:
    """Return the chances that a disc lies between S1 and S2, and that it is a small disc with a name; or (0, 1)."""
    above = [i.volume_mm3 for i in items[:k] if i.kind is Kind.DISC and not i.cut][-REMNANT_BELOW:]
    if items[k].kind is Kind.DISC and len(above) == REMNANT_BELOW:
        share = max(i.volume_mm3 for i in items[k:] if i.kind is Kind.DISC) / float(np.median(above))
        return next(((remnant, named) for most, remnant, named in REMNANTS if share < most), (0.0, 1.0))
    return 0.0, 1.0


def false_weight(items: tuple[Item, ...], trust: Trust) -> Floats:
    """Return the (items,) weight of each piece not being a structure of the column."""
    weights = np.zeros(len(items))
    for k, item in enumerate(items):
        if item.pin:
            weights[k] = PIN_WEIGHT
            continue
        weight = P_C1_CLASS_WRONG if item.is_c1 else P_FALSE[item.kind]
        if item.kind is not Kind.DISC and item.volume_mm3 >= LARGE_BONE_MM3:
            weight *= FALSE_IF_LARGE
        if trust.measured and (remnant := _remnant(items, k)[0]) > 0:
            # This disc lies between S1 and S2, where networks see L5-S.
            others = sum(item.landmarks.values()) - item.landmarks.get(DISC_L5_S, 0.0)
            weights[k] = remnant * FALSE_LANDMARK**others
            continue
        weight *= FALSE_LANDMARK ** sum(item.landmarks.values())
        weight *= 0.5 if item.odd is not None else 1.0
        near = [i.width_mm for i in items[max(0, k - 4) : k + 5] if i.kind is item.kind and not i.cut]
        usual = float(np.median(near)) if len(near) >= 3 else 0.0
        if item.kind is Kind.DISC and usual and item.width_mm < SMALL * usual:
            weight *= FALSE_IF_TINY if item.width_mm < TINY * usual else FALSE_IF_SMALL
        weights[k] = weight
    return weights


VARIANTS: Final[Mapping[str, float]] = MappingProxyType(
    {
        "six lumbar vertebrae": LUMBAR_PRIOR[6],
        "four lumbar vertebrae": LUMBAR_PRIOR[4],
        "13 thoracic vertebrae": THORACIC_PRIOR[13],
        "11 thoracic vertebrae": THORACIC_PRIOR[11],
    }
)
"""Variants that would change counted names, with the share of people who have them.

Source: Tins and Balain, Insights Imaging 2016; Carrino et al., Radiology 2011; Yan et al., Eur Spine J 2018
(``LUMBAR_PRIOR`` and ``THORACIC_PRIOR``).
"""


def variants_in_view(codes: Collection[int]) -> dict[str, float]:
    """Return the variants that would change names, with their share of people.

    Args:
        codes: Named levels. If they were counted up from the sacrum, lumbar variants change all levels above it and
            thoracic ones the thoracic levels; counted down from C2, thoracic variants change the levels below T11.
    """
    from_below = bool({SACRUM, DISC_L5_S} & set(codes))
    lumbar = bool(set(codes) & set(LUMBAR)) and from_below
    thoracic = bool(set(codes) & set(THORACIC if from_below else (*THORACIC[11:], *LUMBAR)))
    in_view = {"lumbar": lumbar, "thoracic": thoracic}
    return {what: share for what, share in VARIANTS.items() if in_view[what.split()[1]]}
