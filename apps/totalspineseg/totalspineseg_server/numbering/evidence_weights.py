"""Define the constants of the model, and compute how well each piece fits each slot.

Every weight is a likelihood ratio: how much more probable the evidence is if the piece belongs in the slot than if it
were a false component.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import (
    C1,
    DISC_C2_C3,
    DISC_L2_L3,
    DISC_L3_L4,
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
from totalspineseg_server.trust import Chances, LowerEnd, Trust

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
"""Probability that the disc after a missed one at the end of the row is also missed: whatever hides one (metal, a bad
coil, the end of the canal) hides its neighbors.
"""
P_NEXT_MISSED_WITHIN: Final = 0.1
"""The same for a disc or a vertebra between two pieces, where only metal or a void has this effect. Not lower, because
a few levels behind metal must stay more probable than one level of their length.
"""
LARGE_BONE_MM3: Final = 8000.0
"""Volume of a large vertebra or sacrum: a whole cervical vertebra, a third of a small sacrum."""
FALSE_IF_LARGE: Final = 0.1
"""Factor by which such a large component is less likely to be false, because nothing else in the image has that
size."""
P_SPLIT: Final = 0.02
"""Probability that the next component is another part of the same structure."""
FALSE_LANDMARK: Final = 0.05
"""Probability that a false disc has the class of any one landmark."""
THIN_DISC: Final = 0.25
"""A disc below all others with less than this share of their usual volume may be the remnant between S1 and S2, which
most people have and which has no name here."""
REMNANT_BELOW: Final = 3
"""Number of discs above the last one whose median volume is the usual volume."""
P_C1_CLASS_WRONG: Final = 0.01
"""Probability that the structure labeled C1 by step 1 is not C1; low, because the ring is unlike every other vertebra.
"""
LOWER_END: Final = LowerEnd(1.0, thin=0.06, below_thin=0.1, below=0.02, s1=0.1, s1_whole=0.05, shifted=0.015)
"""Shares of scans, for measured networks: the fewer scans were measured, the closer they are to these."""
P_S1_APART: Final = 0.02
"""Probability that S1 is drawn as a separate piece of the sacrum, by measured networks."""
P_S1_APART_UNMEASURED: Final = 0.0005
"""Probability that S1 is drawn separately or as a vertebra, by networks that nobody has measured. It is as low as that
of a false vertebra of this size."""
SHIFTED_BONE: Final = 0.7
"""Probability that the last lumbar vertebra is drawn as part of the sacrum by a network that takes it for S1; its other
errors follow: L5-S and T12-L1 are expected one disc too high."""
SHIFTED_LAST_DISC: Final = 0.5
"""Probability that such a network draws L5-S as thin as the remnant between S1 and S2, for which it takes the disc;
and that the disc has the class of L5-S nevertheless."""
S1_TAPER: Final = (math.log(1.5), 0.25)
LUMBAR_TAPER: Final = (0.0, 0.12)
"""Logarithm of the taper (``Item.taper``) of the bodies of S1 and of lumbar vertebrae, and its standard deviation.

Source: a ratio of at most 1.37 makes S1 a transitional, "squared" vertebra (Wigh, Spine 1980; Konin and Walz, AJNR
2010); lumbar bodies are as deep above as below.
"""
MAX_TAPER: Final = 10.0
"""Largest factor by which a taper is more probable for one of them: outlines are ragged, and S1 is squared in some."""
P_SKULL_BASE: Final = 0.3
"""Probability that the skull base is drawn as a vertebra, if it is in view."""
P_DENS_BASE: Final = 0.4
"""Probability that a disc is drawn at the base of the dens: step 2 of the starter weights draws one in three of five
necks, and step 1 in one."""
DENS_AS_C2_C3: Final = 0.5
"""Probability that such a disc has the class of C2-C3."""
LOST_TO_DENS: Final = 0.35
"""Probability that C2-C3 then lacks its own class."""
DENS_SIZE: Final = -0.6
DISC_SIZE: Final = -0.15
"""Logarithm of the volume of such a disc, and of a disc of the neck, relative to the disc below."""
DENS_SIZE_SPREAD: Final = 0.4
DISC_SIZE_SPREAD: Final = 0.25
"""Standard deviations of these logarithms, for discs as networks draw them."""
MAX_SIZE_AWAY: Final = 2.5
"""Largest deviation that counts, in standard deviations."""
P_KIND_WRONG: Final = 0.01
"""Probability that the sacrum is drawn as a vertebra or a vertebra as the sacrum."""

CAREFUL: Final = Chances(own=0.87, above=0.15, below=0.15, above_alone=0.055, below_alone=0.055)
"""Chances for networks that nobody has measured: a landmark disc has its own class, or the disc above or below it does.
Measured networks (``Trust``) have better chances; the fewer scans were measured, the closer they are to these."""
LANDMARK_OTHER: Final = 0.02 / 3
"""Probability that a landmark disc has another landmark's class; if it has none of these either, its own is lost."""
LANDMARK_NEAR_2: Final = 0.07
"""Factor by which a landmark's class is rarer two levels from the landmark than on the next disc."""
LANDMARK_ALONE: Final = 1 / 3
"""Factor for a neighbor of a landmark whose own disc would be beyond the outermost disc in view, compared with a
landmark that moves within the view (own class lost, neighbor's present): the network would have to invent it."""
LANDMARK_COUNTED: Final = 0.5
"""The same factor if the class is that of T12-L1, one level too low, on the uppermost disc in view, if that is the
fifth above L5-S: networks seem to count up from the sacrum. Of 24 synthetic lumbar scans with six lumbar vertebrae, six
end with L1-L2; in four of these it was T12-L1 for both networks (starter weights)."""
COUNTED_UP: Final = (DISC_T12_L1, DISC_L5_S)
"""Landmarks that move with the sacrum: networks seem to find T12-L1 by counting as well."""
COUNTED_DISCS: Final = 1 + max(LUMBAR_PRIOR, key=lambda count: LUMBAR_PRIOR[count])
"""Number of discs from that disc to L5-S."""
LANDMARK_FAR: Final = 0.001
"""Probability that a plain disc farther away has a landmark's class."""

SCALES: Final = np.exp(np.linspace(-0.42, 0.30, 7))
"""Sizes of people relative to ``HEIGHT_MM``: 0.66 (a child of six) to 1.35."""
SCALE_SPREAD: Final = 0.17
"""Standard deviation of the logarithm of the scale over patients of all ages; adults alone vary by 0.08."""
SPACING_SPREAD: Final = 0.09
"""Standard deviation of the distance between two pieces, as a share of the expected one: varying levels, inexact
centers.
"""
SPACING_MM: Final = 1.5
"""Standard deviation independent of the distance, mm: voxel size and ragged borders."""
CUT_SPREAD: Final = 0.3
"""Standard deviation that is added for a piece that the field of view cuts, or that is drawn in part, as a share of the
level's height: its center is off by up to half."""
SACRUM_SPREAD_MM: Final = 10.0
"""Standard deviation that is added for the middle of the sacrum, mm: a third or all of the sacrum may be in view."""
SKULL_SPREAD_MM: Final = 5.0
"""Standard deviation that is added for the skull base, mm."""
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
"""Number of independent widths that all widths of a patient count as, because their errors are correlated."""
SMALL: Final = 0.45
"""A component with less than this share of its neighbors' lateral width is more likely to be false."""
FALSE_IF_SMALL: Final = 12.0
"""Factor by which such a component is more likely to be false."""
FALSE_IF_TINY: Final = 60.0
"""The same factor below ``TINY`` of the neighbors' width: a speck."""
TINY: Final = 0.25

STEEPER_DEG: Final = {DISC_L2_L3: 2.0, DISC_L3_L4: 8.0, DISC_L4_L5: 12.0, DISC_L5_L6: 12.0, DISC_L5_S: 22.0}
"""How much steeper a disc is than the disc above it, seen from the side; others are as steep. The angles themselves
depend on how a person lies.

Source: the labels of 17 lumbar patients of SPIDER (van der Graaf et al., Sci Data 2024; standard deviations 3 to 7).
"""
STEEPER_SPREAD_DEG: Final = 8.0
"""Standard deviation of these differences, for discs as networks draw them."""
MAX_STEEPER: Final = 2.5
"""Largest deviation that counts, in standard deviations: spines are bent and slip."""

LOCALIZER_NEAR: Final = (1.0, 0.25, 0.03)
"""Support of a slot by an overlap with a structure of the localizer that is 0, 1 or 2 slots away, because patients
move."""
LOCALIZER_FLOOR: Final = 0.02
"""Probability that the localizer is wrong about a piece."""
LOCALIZER_ITEMS: Final = 5.0
"""Number of independent overlaps that all overlaps with one series count as, because a patient moves as a whole. The
probability of its names counts once for all of them."""
PIN_WEIGHT: Final = 1e-15
"""Weight of every code but the pinned one: a reader's pin outweighs all other evidence."""

MOSTLY: Final = 0.5
"""A disc counts as drawn as a landmark if at least this share of its voxels has the landmark's class."""

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
        following: Probability that the next one is also missed.
    """
    count = np.asarray(count, dtype=np.float64)
    return np.where(count > 0, P_MISSED * following ** np.maximum(count - 1, 0), 1.0)


@cache
def _tree() -> States:
    return states(JUMPS)


def _landmark_fit(
    items: tuple[Item, ...], k: int, discs: Sequence[int], counted: bool, trust: Trust, *, shifted: bool
) -> Floats:
    """Return the (slots,) fit of a disc's classes; 1 for slots of other kinds.

    Args:
        items: Pieces, superior to inferior.
        k: Index of the disc.
        discs: Indices of all discs.
        counted: Whether it is the uppermost and the fifth above L5-S, where a T12-L1 may be counted.
        trust: Measured errors of the network.
        shifted: Whether the network takes the last lumbar vertebra for S1.
    """
    tree = _tree()
    place = discs.index(k)
    over = items[discs[place - 1]].landmarks if place else None
    under = items[discs[place + 1]].landmarks if place + 1 < len(discs) else None
    table = np.zeros((tree.code.size, 1 + len(LANDMARK_DISCS)))
    for place_of, landmark in enumerate(LANDMARK_DISCS, start=1):
        chances = trust.chances(place_of - 1, careful=CAREFUL)
        of, moved = table[:, place_of], int(shifted and landmark in COUNTED_UP)
        of[:] = LANDMARK_FAR
        for above, beside in ((True, under), (False, over)):
            either = chances.above if above else chances.below
            alone = chances.above_alone if above else chances.below_alone
            near = LANDMARK_ALONE * alone
            if beside is not None:
                near = chances.beside(above=above, own=beside.get(landmark, 0.0))
            if landmark == DISC_T12_L1 and counted and not above:
                near = LANDMARK_COUNTED
            side = 1 if above else -1
            of[_above(landmark, moved + side)] = near
            of[_above(landmark, moved + 2 * side)] = max(LANDMARK_FAR, LANDMARK_NEAR_2 * either)
        other = _is_landmark() & (tree.code != landmark)
        of[other] = np.minimum(LANDMARK_OTHER, of[other])
        of[_above(landmark, moved)] = chances.own
        if moved and landmark == DISC_L5_S:
            of[_above(landmark, 0)] = SHIFTED_LAST_DISC
    dens = tree.unnamed & tree.disc
    table[dens, 1 + LANDMARK_DISCS.index(DISC_C2_C3)] = DENS_AS_C2_C3
    table[:, 0] = np.maximum(LANDMARK_OTHER, 1.0 - table[:, 1:].sum(axis=1))
    # What happens to C2-C3 itself is part of the same event.
    share = under.get(DISC_C2_C3, 0.0) if under is not None else 1.0
    usual = trust.chances(LANDMARK_DISCS.index(DISC_C2_C3), careful=CAREFUL).own
    table[dens] *= share * (1 - LOST_TO_DENS) / usual + (1 - share) * LOST_TO_DENS / (1 - usual)
    shares = np.array([items[k].landmarks.get(code, 0.0) for code in LANDMARK_DISCS])
    shares = np.concatenate([[max(0.0, 1.0 - shares.sum())], shares])
    return np.where(tree.disc, np.exp(np.log(table + 1e-12) @ shares), 1.0)


@cache
def _is_landmark() -> npt.NDArray[np.bool_]:
    return np.isin(_tree().code, LANDMARK_DISCS)


@cache
def _above(landmark: int, levels: int) -> npt.NDArray[np.bool_]:
    """Return the (slots,) mask of the discs this many levels above a landmark; below it if negative."""
    tree = _tree()
    if not levels:
        return np.asarray(tree.code == landmark)
    wanted = abs(levels), levels < 0
    return np.array([bool(tree.disc[k]) and _levels_between(int(k), landmark) == wanted for k in range(tree.code.size)])


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
        trust: Measured errors of the network that made the map.

    Returns:
        (items, views, slots) likelihoods, see ``view_prior``.
    """
    tree = _tree()
    result = np.zeros((len(items), view_prior(trust).size, tree.code.size))
    widths = sum(1 for item in items if not item.cut) or 1
    series = max((len(item.overlaps) for item in items), default=0)
    touched = [sum(1 for item in items if item.overlaps and item.overlaps[k].shares) for k in range(series)]
    discs = [k for k, item in enumerate(items) if item.kind is Kind.DISC]
    sacrum = any(item.kind is Kind.SACRUM or item.landmarks.get(DISC_L5_S, 0.0) > MOSTLY for item in items)
    counted = sacrum and len(discs) == COUNTED_DISCS
    for k, item in enumerate(items):
        base = np.ones(tree.code.size)
        if item.landmarks:
            base = base * _steeper_fit(items, k, tree, trust) * _dens_fit(items, k, tree)
        base = base * _width_fit(item, tree) ** min(1.0, WIDTH_ITEMS / widths)
        # C1 of step 1 has no overlaps, even if there are localizers.
        for overlap, count in zip(item.overlaps, touched, strict=bool(item.overlaps)):
            base = base * _localizer_fit(overlap, count, tree)
        remnant = _remnant(items, k, trust)[1] if trust.measured else 1.0
        base = base * remnant * np.where(tree.s1, s1_shape(item), 1.0)
        if item.pin:
            base = np.where(np.isin(tree.code, list(item.pin)), base, base * PIN_WEIGHT)
        parity = _parity_fit(item, tree, trust.parity) ** (1.0 - item.sacral)
        is_part = is_sacral_part(items, k)
        for view, shifted in enumerate((False, True)[: len(result[k]) // 2]):
            seen = _kind_fit(item, tree, trust, shifted=shifted, is_part=is_part)
            if shifted and remnant < 1.0:
                seen = seen * np.where(tree.code == DISC_L5_S, SHIFTED_LAST_DISC / remnant, 1.0)
            if item.landmarks:
                uppermost = counted and k == discs[0]
                seen = seen * _landmark_fit(items, k, discs, uppermost, trust, shifted=shifted)
            result[k, 2 * view : 2 * view + 2] = base * seen * parity
    return result


@cache
def view_prior(trust: Trust) -> Floats:
    """Return the (views,) probability of each view of a network, which holds for a whole map.

    The step-2 classes are swapped (odd marks the even positions) or not, which is equally likely. A measured network
    may, besides, take the last lumbar vertebra for S1: a common cause of errors that would be improbable together.
    """
    if not trust.measured:
        return np.array([0.5, 0.5])
    shifted = trust.lower_end.pulled(LOWER_END).shifted
    return np.repeat([1.0 - shifted, shifted], 2) / 2


def _kind_fit(item: Item, tree: States, trust: Trust, *, shifted: bool, is_part: bool) -> Floats:
    """Return the fit of a piece's kind; a bone that is drawn as both counts as each by its share.

    Args:
        item: The piece.
        tree: The slots.
        trust: Measured errors of the network.
        shifted: Whether the network takes the last lumbar vertebra for S1.
        is_part: Whether it is a part of the sacrum that ``divide`` cut out because of the disc below it, which counts
            by itself.
    """
    if item.kind is Kind.DISC:
        return np.asarray(np.where(tree.unnamed, P_DENS_BASE, 1.0) * tree.disc, dtype=np.float64)
    if item.is_c1:
        return np.asarray(tree.code == C1, dtype=np.float64)
    apart_vertebra = apart = P_S1_APART if trust.measured else P_S1_APART_UNMEASURED
    if trust.measured:
        end = trust.lower_end.pulled(LOWER_END)
        is_large = (1.0 - item.sacral) * item.volume_mm3 >= LARGE_BONE_MM3
        apart_vertebra = end.s1_whole if is_large else end.s1
    as_vertebra = _bone_fit(tree, P_KIND_WRONG, apart_vertebra)
    as_sacrum = _bone_fit(tree, 1.0 - P_KIND_WRONG, 1.0 if is_part else apart)
    if shifted:
        as_vertebra += last_lumbar() * (1.0 - SHIFTED_BONE - as_vertebra)
        as_sacrum += last_lumbar() * (SHIFTED_BONE - as_sacrum)
    return np.asarray(as_vertebra ** (1.0 - item.sacral) * as_sacrum**item.sacral, dtype=np.float64)


def _bone_fit(tree: States, is_sacrum: float, is_s1: float) -> Floats:
    """Return the (slots,) chance of a class.

    Args:
        tree: The slots.
        is_sacrum: Chance of the class for the sacrum; vertebrae have the rest.
        is_s1: Chance that S1 is drawn apart in this class.
    """
    sacrum = (tree.code == SACRUM) & ~tree.s1
    vertebra = ~tree.disc & (tree.code != SACRUM) & ~tree.unnamed
    skull = tree.unnamed & ~tree.disc
    fits = vertebra * (1.0 - is_sacrum) + sacrum * is_sacrum + tree.s1 * is_s1
    return np.asarray(fits + skull * (1.0 - is_sacrum) * P_SKULL_BASE, dtype=np.float64)


def is_sacral_part(items: Sequence[Item], k: int) -> bool:
    """Return whether an item is the part of the sacrum above a disc inside it: L5 or S1, drawn as sacrum."""
    below = [item.kind for item in items[k + 1 :] if item.kind is not Kind.VERTEBRA and not item.is_far]
    is_large = items[k].sacral > 0 and items[k].taper is not None
    return is_large and below[:1] == [Kind.DISC] and Kind.SACRUM in below


def s1_shape(item: Item) -> float:
    """Return how much better the shape of a body fits S1 than a lumbar vertebra; 1 if it is unknown."""
    if item.taper is None:
        return 1.0
    s1, lumbar = (
        math.exp(-0.5 * ((math.log(item.taper) - mean) / deviation) ** 2) / deviation
        for mean, deviation in (S1_TAPER, LUMBAR_TAPER)
    )
    return min(max(s1 / max(lumbar, 1e-9), 1 / MAX_TAPER), MAX_TAPER)


@cache
def last_lumbar() -> Floats:
    """Return the (slots,) probability that a vertebra is the last lumbar one: in most columns it is L5, in few L4."""
    tree = _tree()
    result = np.zeros(tree.code.size)
    for k in np.flatnonzero(tree.code == DISC_L5_S):
        result[tree.parent[k]] += tree.prior[k] / tree.prior[tree.parent[k]]
    return result


def _width_fit(item: Item, tree: States) -> Floats:
    """Return the fit of a width relative to the best slot; ``false_weight`` decides whether an odd size is false."""
    if item.cut or item.kind is not Kind.DISC:
        return np.ones(tree.code.size)
    away = np.log(item.width_mm / tree.width_mm) / WIDTH_SPREAD
    score = np.exp(-0.5 * np.minimum(away**2, 9.0))
    return np.asarray(score / score.max())


def _steeper_fit(items: tuple[Item, ...], k: int, tree: States, trust: Trust) -> Floats:
    """Return how well a disc fits the slots by how much steeper it is than the disc above it."""
    above = next((item for item in reversed(items[:k]) if item.kind is Kind.DISC), None)
    tilt = items[k].tilt_deg
    if not trust.measured or above is None or above.tilt_deg is None or tilt is None or items[k].cut or above.cut:
        return np.ones(tree.code.size)
    usual = np.zeros(tree.code.size)
    for code, degrees in STEEPER_DEG.items():
        usual[tree.code == code] = degrees
    away = (tilt - above.tilt_deg - usual) / STEEPER_SPREAD_DEG
    return np.asarray(np.exp(-0.5 * np.minimum(away**2, MAX_STEEPER**2)))


def _dens_fit(items: tuple[Item, ...], k: int, tree: States) -> Floats:
    """Return how much better the volume of a disc fits the base of the dens than a level."""
    result = np.ones(tree.code.size)
    below = next((item for item in items[k + 1 :] if item.kind is Kind.DISC), None)
    if below is not None and not below.cut and not items[k].cut:
        size = math.log(items[k].volume_mm3 / below.volume_mm3)
        dens = min(abs(size - DENS_SIZE) / DENS_SIZE_SPREAD, MAX_SIZE_AWAY)
        level = min(abs(size - DISC_SIZE) / DISC_SIZE_SPREAD, MAX_SIZE_AWAY)
        ratio = math.exp((level**2 - dens**2) / 2) * DISC_SIZE_SPREAD / DENS_SIZE_SPREAD
        result[tree.unnamed & tree.disc] = ratio
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
    places = np.array([ORDER.get(int(code), -len(ORDER)) for code in tree.code])
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
    either = (tree.code == SACRUM) | tree.unnamed
    return np.stack([np.where(either, 0.5, as_named), np.where(either, 0.5, 1 - as_named)])


def _remnant(items: tuple[Item, ...], k: int, trust: Trust) -> tuple[float, float]:
    """Return the chances that a disc of this volume is drawn between S1 and S2, and that one with a name has it; (0, 1)
    above a larger disc."""
    above = [i.volume_mm3 for i in items[:k] if i.kind is Kind.DISC and not i.cut][-REMNANT_BELOW:]
    if items[k].kind is not Kind.DISC or len(above) < REMNANT_BELOW:
        return 0.0, 1.0
    thin = THIN_DISC * float(np.median(above))
    end = trust.lower_end.pulled(LOWER_END)
    if any(i.kind is Kind.DISC and i.volume_mm3 >= thin for i in items[k + 1 :]):
        return 0.0, 1.0
    return (end.below_thin, end.thin) if items[k].volume_mm3 < thin else (end.below, 1.0 - end.thin)


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
        if trust.measured and (remnant := _remnant(items, k, trust)[0]) > 0:
            # This is between S1 and S2, where networks see L5-S.
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
