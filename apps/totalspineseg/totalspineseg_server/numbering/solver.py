"""Infer the names exactly: by sums and maxima over all ways to place the pieces in the column.

A state is (scale, view, slot): the patient's size, how the network sees the column (``view_prior``), and the slot of
the piece. Scale and view are the same for the whole column; only the slot changes from piece to piece. Arrays over
states have the shape (scales, views, slots).
"""

from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import DISC_L5_S, SACRUM, Kind
from totalspineseg_server.numbering import evidence_weights as w
from totalspineseg_server.numbering.evidence import Evidence, Item
from totalspineseg_server.numbering.states import SACRUM_CENTER_MM, Floats, Ints, States, Step, observable, states

Path = tuple[int, ...]
"""Code of each item; 0 if the item is a false component."""
State = tuple[int, int, int]
FALSE: Final = 0
NOTHING: Final = -1
"""Code in a path for an item that must be false."""
END_GRACE: Final = 0.4
"""How far the column in view beyond the outermost disc may reach past the next disc before that disc counts as missed,
as a share of a level's height."""
MAX_MISSED_BELOW: Final = 3
SACRUM_LENGTH_MM: Final = 130.0
"""Length of bone along the canal below the L5-S disc, mm at scale 1: the sacrum and the upper coccyx."""

SWALLOWED_SLOTS: Final = 4
"""Number of slots from the disc above the last lumbar vertebra to the sacrum, past the vertebra, its disc and S1."""

Reduction = Literal["sum", "max"]


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


class Chain:
    """The evidence of a map, placed in the column.

    Args:
        evidence: From ``gather``; at least one item.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.tree: States = states(w.JUMPS)
        self.items = evidence.items
        self.count = len(evidence.items)
        self.evidence = evidence
        self.fit = w.fit(evidence.items, evidence.trust)
        self.false = w.false_weight(evidence.items, evidence.trust)
        # Weights are relative to being false, because the product of a hundred false pieces would be too small for a
        # number.
        base = np.array([1.0 if item.pin else false for item, false in zip(self.items, self.false, strict=True)])
        self.fit, self.false = self.fit / base[:, None, None], self.false / base
        views = w.view_prior(evidence.trust).size
        self.entry = self._entry()
        self.exit = self._exit()
        self.shape = (w.SCALES.size, views, self.tree.code.size)
        self.steps: dict[tuple[int, int], tuple[Links, Floats]] = {}
        for j in range(self.count):
            skipped = 1.0
            for i in range(j - 1, max(-1, j - 1 - w.LOOKBACK), -1):
                ways = [between(self.items[i], self.items[j], evidence.step, shifted=k > 0) for k in range(views // 2)]
                weights = [weigh(steps, self.items[i], self.items[j]) for steps in ways]
                self.steps[i, j] = ways[0], skipped * np.repeat(np.stack(weights, axis=1), 2, axis=1)
                skipped *= self.false[i]
        self._lead = np.concatenate([[1.0], np.cumprod(self.false)])
        self._trail = np.concatenate([np.cumprod(self.false[::-1])[::-1][1:], [1.0]])

    def _entry(self) -> Floats:
        """Return the (scales, views, slots) weight of a start in a slot; discs in view above it count as missed."""
        scale_prior = np.exp(-0.5 * (np.log(w.SCALES) / w.SCALE_SPREAD) ** 2)
        scale_prior /= scale_prior.sum()
        view = w.view_prior(self.evidence.trust)
        missed = self._missed_above(self.evidence.above_mm)
        prior = scale_prior[:, None] * self.tree.prior * w.missed_weight(missed) / self.tree.code.size
        return np.asarray((prior * observable(self.tree, self.evidence.step))[:, None, :] * view[:, None])

    def _missed_above(self, length_mm: float) -> Floats:
        """Return the (scales, slots) number of discs that should be in view above an item in each slot."""
        result = np.zeros((w.SCALES.size, self.tree.code.size))
        if length_mm <= 0:
            return result
        for k in range(self.tree.code.size):
            above = int(self.tree.parent[k])
            while above >= 0:
                if self.tree.disc[above] and not self.tree.unnamed[above]:
                    away = self.tree.depth_mm[k] - self.tree.depth_mm[above] + END_GRACE * self.tree.height_mm[above]
                    if w.SCALES[0] * away > length_mm:
                        break
                    result[:, k] += w.SCALES * away < length_mm
                above = int(self.tree.parent[above])
        return result

    def _exit(self) -> Floats:
        """Return the (scales, 1, slots) weight of an end in a slot; only the sacrum is long below the last disc."""
        last = (self.tree.code == DISC_L5_S) | (self.tree.code == SACRUM)
        scale = w.SCALES[:, None]
        length = (self.evidence.below_mm - SACRUM_LENGTH_MM * scale * last) / (scale * self.tree.height_mm)
        missed = np.floor(np.maximum(0.0, length - END_GRACE))
        return w.missed_weight(np.minimum(missed, MAX_MISSED_BELOW))[:, None, :]

    def forward(self, how: Reduction, fit: Floats | None = None) -> list[Floats]:
        """Return the weight of all beginnings (or of the best) that put item j in each state, for every j.

        Args:
            how: "sum" or "max".
            fit: Fit of the items; None for that of the chain.
        """
        fit = self.fit if fit is None else fit
        add = np.add if how == "sum" else np.maximum
        result: list[Floats] = []
        for j in range(self.count):
            total = self._lead[j] * np.broadcast_to(self.entry, self.shape)
            for i in range(max(0, j - w.LOOKBACK), j):
                steps, weights = self.steps[i, j]
                come = result[i][:, :, steps.upper] * weights
                part = add.reduceat(come, steps.lower_starts, axis=2)
                total[:, :, steps.lower_slots] = add(total[:, :, steps.lower_slots], part)
            result.append(total * fit[j])
        return result

    def backward(self, how: Reduction) -> list[Floats]:
        """Return the weight of all endings (or of the best) after item i, given its state, for every i."""
        add = np.add if how == "sum" else np.maximum
        result: list[Floats] = [np.zeros(0)] * self.count
        for i in range(self.count - 1, -1, -1):
            total = self._trail[i] * np.broadcast_to(self.exit, self.shape)
            for j in range(i + 1, min(self.count, i + 1 + w.LOOKBACK)):
                steps, weights = self.steps[i, j]
                onward = (result[j] * self.fit[j])[:, :, steps.lower] * weights
                part = add.reduceat(onward[:, :, steps.by_upper], steps.upper_starts, axis=2)
                total[:, :, steps.upper_slots] = add(total[:, :, steps.upper_slots], part)
            result[i] = total
        return result

    def total(self, forward: list[Floats]) -> float:
        """Return the sum of the weights of a forward pass."""
        return float(sum((forward[i] * self.exit).sum() * self._trail[i] for i in range(self.count)))

    def agreeing(self, path: Path) -> float:
        """Return the weight of all numberings that give each item the path's code or none; where the path has 0, any
        code is allowed."""
        return self.total(self.forward_along(path))

    def forward_along(self, path: Path) -> list[Floats]:
        """Return the forward sums over all numberings that agree with a path."""
        return self.forward("sum", np.asarray(self.fit * self._allowed(path)[:, None, :]))

    def as_usual(self, path: Path, every: float) -> tuple[float, float]:
        """Return how probable a path is in a column of the usual count, and how probable such a column is.

        Args:
            path: Code of each item.
            every: ``total`` of all numberings.

        Returns:
            The probability of the path if the column has 12 thoracic and 5 lumbar vertebrae, and that it has them.
        """
        usual = np.asarray(self.fit * self.tree.usual)
        of_usual = self.total(self.forward("sum", usual))
        agreeing = self.total(self.forward("sum", np.asarray(usual * self._allowed(path)[:, None, :])))
        return (agreeing / of_usual if of_usual else 0.0), of_usual / every

    def _allowed(self, path: Path) -> npt.NDArray[np.bool_]:
        """Return the (items, slots) mask of the slots that give each item the path's code or none."""
        codes = np.array(path)[:, None]
        return np.asarray((codes == FALSE) | (self.tree.code[None, :] == codes))

    def trace(self, item: int, state: State, before: list[Floats], after: list[Floats]) -> Path:
        """Return the codes of the best path with ``item`` in ``state``, from the forward and backward maxima."""
        path = [FALSE] * self.count
        scale, view, slot = state
        path[item] = int(self.tree.code[slot])
        for move, values in ((self._before, before), (self._after, after)):
            found = move(item, slot, scale, view, values)
            while found is not None:
                at, here = found
                path[at] = int(self.tree.code[here])
                found = move(at, here, scale, view, values)
        return tuple(path)

    def _before(self, at: int, slot: int, scale: int, view: int, before: list[Floats]) -> tuple[int, int] | None:
        best, found = self._lead[at] * float(self.entry[scale, view, slot]), None
        for i in range(max(0, at - w.LOOKBACK), at):
            steps, weights = self.steps[i, at]
            keep = slice(*np.searchsorted(steps.lower, (slot, slot + 1)))
            values = before[i][scale, view, steps.upper[keep]] * weights[scale, view, keep]
            if values.size and values.max() > best:
                best, found = float(values.max()), (i, int(steps.upper[keep][values.argmax()]))
        return found

    def _after(self, at: int, slot: int, scale: int, view: int, after: list[Floats]) -> tuple[int, int] | None:
        best, found = self._trail[at] * float(self.exit[scale, 0, slot]), None
        for j in range(at + 1, min(self.count, at + 1 + w.LOOKBACK)):
            steps, weights = self.steps[at, j]
            keep = np.flatnonzero(steps.upper == slot)
            lower = steps.lower[keep]
            values = (after[j] * self.fit[j])[scale, view, lower] * weights[scale, view, keep]
            if values.size and values.max() > best:
                best, found = float(values.max()), (j, int(lower[values.argmax()]))
        return found

    def column_through(self, path: Path, forward: list[Floats]) -> list[int]:
        """Return the slots from C1 to the sacrum of the most probable column for a path.

        Args:
            path: Code of each item.
            forward: From ``forward_along`` this path.
        """
        last = max(k for k, code in enumerate(path) if code != FALSE)
        ends = (forward[last] * self.exit).sum(axis=(0, 1))
        slots = [int((ends * (self.tree.code == path[last])).argmax())]
        while self.tree.parent[slots[-1]] >= 0:
            slots.append(int(self.tree.parent[slots[-1]]))
        slots.reverse()
        while (below := np.flatnonzero(self.tree.parent == slots[-1])).size:
            slots.append(int(below[self.tree.prior[below].argmax()]))
        return [slot for slot in slots if not self.tree.unnamed[slot]]

    def missed(self, path: Path, slots: list[int]) -> tuple[int, ...]:
        """Return the codes between the first and the last named item that no item has, for the slots of a column."""
        codes = [code for code in path if code != FALSE]
        seen: npt.NDArray[np.bool_] = observable(self.tree, self.evidence.step)
        column = [int(self.tree.code[k]) for k in slots if seen[k]]
        if not codes or not {codes[0], codes[-1]} <= set(column):
            return ()
        return tuple(c for c in column[column.index(codes[0]) : column.index(codes[-1])] if c not in codes)


def posterior(chain: Chain, forward: list[Floats], backward: list[Floats]) -> list[dict[int, float]]:
    """Return code -> probability for each item; the probability of no level is the difference to 1."""
    total = chain.total(forward)
    result = []
    for before, after in zip(forward, backward, strict=True):
        per_slot = (before * after).sum(axis=(0, 1)) / total
        codes: dict[int, float] = {}
        for slot in np.flatnonzero((per_slot > 0) & ~chain.tree.unnamed):
            code = int(chain.tree.code[slot])
            codes[code] = codes.get(code, 0.0) + float(per_slot[slot])
        result.append(codes)
    return result
