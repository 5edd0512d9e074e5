"""List the steps from one piece to the next: which slots they join, and how probable each step is."""

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from totalspineseg_server.anatomy import DISC_L5_S, SACRUM, Kind
from totalspineseg_server.numbering import evidence_weights as w
from totalspineseg_server.numbering.evidence import Item
from totalspineseg_server.numbering.states import SACRUM_CENTER_MM, Floats, Ints, Step, observable, states

SWALLOWED_SLOTS: Final = 4
"""Number of slots from the disc above the last lumbar vertebra to the sacrum, past the vertebra, its disc and S1."""


@dataclass(frozen=True)
class Links:
    """All steps between an upper and a lower slot for pieces of two kinds.

    Attributes:
        lower: (n,) slot of the lower piece, rising.
        upper: (n,) slot of the upper piece.
        prior: (n,) probability of the step without its length: branches, missed and split structures.
        expected_mm: (n,) distance at scale 1.
        height_mm: (n,) height of the lower slot's level at scale 1.
        spread_mm: (n,) standard deviation of that distance in addition to the usual one: the middles of the sacrum and
            of the skull base depend on how much of them is in view.
        same: (n,) whether both are the same slot, so that the pieces are parts of one structure.
        lower_slots, lower_starts: The distinct lower slots, and where each begins.
        by_upper: Order of the links by upper slot.
        upper_slots, upper_starts: The same for the upper slots, in that order.
    """

    lower: Ints
    upper: Ints
    prior: Floats
    expected_mm: Floats
    height_mm: Floats
    spread_mm: Floats
    same: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    lower_slots: Ints
    lower_starts: Ints
    by_upper: Ints
    upper_slots: Ints
    upper_starts: Ints


@cache
def links(upper_is_disc: bool, lower_is_disc: bool, step: Step, shifted: bool = False) -> Links:
    """Return the steps between pieces of two kinds.

    Args:
        upper_is_disc: Whether the upper piece is a disc (otherwise a vertebra or the sacrum).
        lower_is_disc: The same for the lower piece.
        step: 1 or 2; in step 1 vertebrae other than C1 have no pieces, so passing them costs nothing.
        shifted: Whether the network takes the last lumbar vertebra for S1: then this has no piece of its own, and the
            disc below it may have none.
    """
    tree = states(w.JUMPS)
    seen = observable(tree, step)
    disc = np.append(tree.disc, False)
    missed = tree.between.sum(axis=2) if step == 2 else tree.between[:, :, 0]
    prior = tree.path_prior * w.missed_weight(missed, w.P_NEXT_MISSED_WITHIN)
    prior[:, 0] = w.P_SPLIT
    fits = np.append(seen, False)[tree.ancestor] & seen[:, None] & (tree.ancestor < tree.code.size)
    fits &= (disc[tree.ancestor] == upper_is_disc) & (tree.disc == lower_is_disc)[:, None]
    lower, jump = np.nonzero(fits)
    upper = tree.ancestor[lower, jump]
    chance, expected = prior[lower, jump], tree.depth_mm[lower] - tree.depth_mm[upper]
    if shifted:
        sacrum = (tree.code[lower] == SACRUM) & ~tree.s1[lower] & (jump == SWALLOWED_SLOTS)
        bone = (tree.code[lower] == DISC_L5_S) & (jump == 2)
        chance = np.where(sacrum | bone, w.SHIFTED_BONE * tree.path_prior[lower, jump], chance)
        expected = np.where(sacrum, SACRUM_CENTER_MM, expected)
    skull = tree.unnamed[upper] & ~tree.disc[upper]
    by_upper = np.argsort(upper, kind="stable")
    lower_slots, lower_starts = np.unique(lower, return_index=True)
    upper_slots, upper_starts = np.unique(upper[by_upper], return_index=True)
    return Links(
        lower=lower,
        upper=upper,
        prior=chance,
        expected_mm=expected,
        height_mm=tree.height_mm[lower],
        spread_mm=np.where(tree.code[lower] == SACRUM, w.SACRUM_SPREAD_MM, w.SKULL_SPREAD_MM * skull),
        same=jump == 0,
        lower_slots=lower_slots,
        lower_starts=lower_starts,
        by_upper=by_upper,
        upper_slots=upper_slots,
        upper_starts=upper_starts,
    )


def between(upper: Item, lower: Item, step: Step, *, shifted: bool) -> Links:
    """Return the steps between two items; a network may take the last lumbar vertebra for S1 (``shifted``)."""
    return links(upper.kind is Kind.DISC, lower.kind is Kind.DISC, step, shifted)


def weigh(steps: Links, upper: Item, lower: Item) -> Floats:
    """Return the weight of each step between two items, relative to a false component that could be anywhere.

    Args:
        steps: From ``between``.
        upper: The upper item.
        lower: The lower item.

    Returns:
        (scales, n) weights.
    """
    scale = w.SCALES[:, None]
    expected, height = scale * steps.expected_mm, scale * steps.height_mm
    sd = w.SPACING_MM + steps.spread_mm + w.SPACING_SPREAD * expected + w.CUT_SPREAD * height * (upper.cut + lower.cut)
    sd = np.where(steps.same, w.SPACING_MM + w.SPLIT_SPREAD * height, sd)
    apart = lower.place_mm - upper.place_mm
    ruled = np.exp(-0.5 * ((apart - expected) / sd) ** 2) / (sd * np.sqrt(2 * np.pi))
    odd = ~steps.same & (apart <= w.ODD_STRETCH * expected)
    density = (1 - w.P_ODD_SPACING) * ruled + w.P_ODD_SPACING / w.ODD_SPACING_MM * odd
    return np.asarray(density * w.UNIT_MM * steps.prior)
