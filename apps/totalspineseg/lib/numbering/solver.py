"""Exact inference over the chain: sums and maxima over all ways to thread the pieces through the column.

A state is (scale, swap, slot): the patient's size, whether the odd/even classes are swapped, and the slot of the
piece. Scale and swap hold for the whole column, so only the slot moves. Arrays over states have the shape
(scales, swaps, slots + 1); the last slot is a dummy of weight 0 that ancestors beyond C1 point to.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from lib.anatomy import DISC_L5_S, SACRUM
from lib.numbering import weights as w
from lib.numbering.evidence import Evidence, Item
from lib.numbering.states import Floats, States, Step, observable, states

Path = tuple[int, ...]
"""Code of each item; 0 where the item is a false component."""
FALSE: Final = 0
END_GRACE: Final = 0.4
"""The column in view beyond the outermost disc may reach this far past the next disc before that disc counts as
missed, share of a level's height."""


@cache
def _pairs() -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """(slot, jump) pairs sorted by the ancestor they lead to, with the ancestors and where each begins."""
    tree = states(w.JUMPS)
    flat = tree.ancestor.ravel()
    order = np.argsort(flat, kind="stable")
    order = order[flat[order] < tree.code.size]
    ancestors, starts = np.unique(flat[order], return_index=True)
    return order, ancestors, starts


@cache
def _step_prior(step: Step) -> Floats:
    """(slots, jumps) chance of the step but for its length: branches, missed and split structures."""
    tree = states(w.JUMPS)
    seen = observable(tree, step)
    missed_vertebra = w.P_MISSED_VERTEBRA if step == 2 else 1.0
    prior = tree.path_prior * w.P_MISSED_DISC ** tree.between[:, :, 0] * missed_vertebra ** tree.between[:, :, 1]
    prior[:, 0] = w.P_SPLIT
    ancestor_seen = np.append(seen, False)[tree.ancestor]
    return np.asarray(prior * seen[:, None] * ancestor_seen)


@dataclass(frozen=True)
class _Geometry:
    expected_mm: Floats
    height_mm: Floats


@cache
def _geometry() -> _Geometry:
    """(slots, jumps) distance to the ancestor at scale 1, and the level's height."""
    tree = states(w.JUMPS)
    depth = np.append(tree.depth_mm, 0.0)
    return _Geometry(tree.depth_mm[:, None] - depth[tree.ancestor], tree.height_mm[:, None])


def step_weights(upper: Item, lower: Item, step: Step) -> Floats:
    """(scales, slots, jumps) weight of going from one item to the next, by the lower one's slot."""
    geometry = _geometry()
    apart = lower.place_mm - upper.place_mm
    scale = w.SCALES[:, None, None]
    expected = scale * geometry.expected_mm
    height = scale * geometry.height_mm
    sd = w.SPACING_MM + w.SPACING_SPREAD * expected + w.CUT_SPREAD * height * (upper.cut + lower.cut)
    sd[:, :, 0] = w.SPACING_MM + w.SPLIT_SPREAD * height[:, :, 0]
    ruled = np.exp(-0.5 * ((apart - expected) / sd) ** 2) / (sd * np.sqrt(2 * np.pi))
    density = (1 - w.P_ODD_SPACING) * ruled + w.P_ODD_SPACING / w.ODD_SPACING_MM
    if upper.kind is not lower.kind:
        density[:, :, 0] = 0.0
    return np.asarray(density * w.UNIT_MM * _step_prior(step))


Reduction = Literal["sum", "max"]


class Chain:
    """One map's evidence, threaded through the column.

    Args:
        evidence: From ``gather``; at least one item.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.tree: States = states(w.JUMPS)
        self.items = evidence.items
        self.count = len(evidence.items)
        self.evidence = evidence
        fit = w.fit(evidence.items)
        self.fit = np.concatenate([fit, np.zeros((self.count, 2, 1))], axis=2)
        self.false = w.false_weight(evidence.items)
        self.entry = self._entry()
        self.exit = self._exit()
        self.steps: dict[tuple[int, int], Floats] = {}
        for lower in range(self.count):
            skipped = 1.0
            for upper in range(lower - 1, max(-1, lower - 1 - w.LOOKBACK), -1):
                weights = step_weights(self.items[upper], self.items[lower], evidence.step)
                self.steps[upper, lower] = skipped * weights
                skipped *= self.false[upper]
        self._lead = np.concatenate([[1.0], np.cumprod(self.false)])
        self._trail = np.concatenate([np.cumprod(self.false[::-1])[::-1][1:], [1.0]])

    def _padded(self, values: Floats) -> Floats:
        return np.concatenate([values, np.zeros((*values.shape[:-1], 1))], axis=-1)

    def _entry(self) -> Floats:
        """(scales, 1, slots + 1) chance to start in a slot; discs in view above the first item count as missed."""
        away = np.log(w.SCALES) / w.SCALE_SPREAD
        scale_prior = np.exp(-0.5 * away**2)
        scale_prior /= scale_prior.sum()
        missed = self._missed_above(self.evidence.above_mm)
        prior = scale_prior[:, None] * self.tree.prior * w.P_MISSED_DISC**missed / self.tree.code.size
        return self._padded(prior * observable(self.tree, self.evidence.step))[:, None, :]

    def _missed_above(self, length_mm: float) -> Floats:
        """(scales, slots) discs that ought to be in view above an item in each slot."""
        result = np.zeros((w.SCALES.size, self.tree.code.size))
        for k in range(self.tree.code.size):
            above = int(self.tree.parent[k])
            while above >= 0:
                if self.tree.disc[above]:
                    away = self.tree.depth_mm[k] - self.tree.depth_mm[above] + END_GRACE * self.tree.height_mm[above]
                    if w.SCALES[0] * away > length_mm:
                        break
                    result[:, k] += w.SCALES * away < length_mm
                above = int(self.tree.parent[above])
        return result

    def _exit(self) -> Floats:
        """(scales, 1, slots + 1) chance to end in a slot; below the last disc only the sacrum is long."""
        last = (self.tree.code == DISC_L5_S) | (self.tree.code == SACRUM)
        length = self.evidence.below_mm / (w.SCALES[:, None] * self.tree.height_mm)
        missed = np.floor(np.maximum(0.0, length - END_GRACE)) * ~last
        return self._padded(w.P_MISSED_DISC ** np.minimum(missed, 3))[:, None, :]

    def forward(self, how: Reduction) -> list[Floats]:
        """Weight of all (or of the best of all) beginnings that put item j in each state."""
        ancestor = self.tree.ancestor
        result: list[Floats] = []
        for j in range(self.count):
            total = self._lead[j] * np.broadcast_to(self.entry, (w.SCALES.size, 2, ancestor.shape[0] + 1)).copy()
            for i in range(max(0, j - w.LOOKBACK), j):
                come = result[i][:, :, ancestor] * self.steps[i, j][:, None]
                part = come.sum(axis=3) if how == "sum" else come.max(axis=3)
                if how == "sum":
                    total[:, :, :-1] += part
                else:
                    np.maximum(total[:, :, :-1], part, out=total[:, :, :-1])
            result.append(total * self.fit[j])
        return result

    def backward(self, how: Reduction) -> list[Floats]:
        """Weight of all (or the best) endings after item i, given its state."""
        order, ancestors, starts = _pairs()
        add = np.add if how == "sum" else np.maximum
        slots = self.tree.code.size
        result: list[Floats] = [np.zeros(0)] * self.count
        for i in range(self.count - 1, -1, -1):
            total = self._trail[i] * np.broadcast_to(self.exit, (w.SCALES.size, 2, slots + 1)).copy()
            for j in range(i + 1, min(self.count, i + 1 + w.LOOKBACK)):
                onward = (result[j] * self.fit[j])[:, :, :slots, None] * self.steps[i, j][:, None]
                flat = onward.reshape(w.SCALES.size, 2, -1)[:, :, order]
                part = add.reduceat(flat, starts, axis=2)
                total[:, :, ancestors] = add(total[:, :, ancestors], part)
            result[i] = total
        return result

    def total(self, forward: list[Floats]) -> float:
        """Weight of everything."""
        return float(sum((forward[i] * self.exit).sum() * self._trail[i] for i in range(self.count)))

    def trace(self, item: int, state: tuple[int, int, int], before: list[Floats], after: list[Floats]) -> Path:
        """Codes of the best path that puts ``item`` in ``state``, from the maxima forward and backward."""
        path = [FALSE] * self.count
        scale, swap, slot = state
        path[item] = int(self.tree.code[slot])
        here, at = slot, item
        while at > 0:
            step = self._before(at, here, scale, swap, before)
            if step is None:
                break
            at, here = step
            path[at] = int(self.tree.code[here])
        here, at = slot, item
        while at < self.count - 1:
            step = self._after(at, here, scale, swap, after)
            if step is None:
                break
            at, here = step
            path[at] = int(self.tree.code[here])
        return tuple(path)

    def _before(self, at: int, slot: int, scale: int, swap: int, before: list[Floats]) -> tuple[int, int] | None:
        best, found = self._lead[at] * float(self.entry[scale, 0, slot]), None
        for i in range(max(0, at - w.LOOKBACK), at):
            values = before[i][scale, swap, self.tree.ancestor[slot]] * self.steps[i, at][scale, slot]
            jump = int(values.argmax())
            if values[jump] > best:
                best, found = float(values[jump]), (i, int(self.tree.ancestor[slot, jump]))
        return found

    def _after(self, at: int, slot: int, scale: int, swap: int, after: list[Floats]) -> tuple[int, int] | None:
        best, found = self._trail[at] * float(self.exit[scale, 0, slot]), None
        below, jumps = np.nonzero(self.tree.ancestor == slot)
        for j in range(at + 1, min(self.count, at + 1 + w.LOOKBACK)):
            onward = (after[j] * self.fit[j])[scale, swap, below] * self.steps[at, j][scale, below, jumps]
            choice = int(onward.argmax())
            if onward[choice] > best:
                best, found = float(onward[choice]), (j, int(below[choice]))
        return found

    def weight_of(self, path: Path) -> float:
        """Weight of all states that give the items exactly these codes."""
        real = [k for k, code in enumerate(path) if code != FALSE]
        if not real:
            return 0.0
        slots = self.tree.code.size
        current = self._lead[real[0]] * self._on(path, real[0]) * self.entry
        for i, j in zip(real, real[1:], strict=False):
            if (i, j) not in self.steps:
                return 0.0
            keep = np.flatnonzero(self.tree.code == path[j])
            come = current[:, :, self.tree.ancestor[keep]] * self.steps[i, j][:, None, keep]
            following = np.zeros((w.SCALES.size, 2, slots + 1))
            following[:, :, keep] = come.sum(axis=3) * self.fit[j][:, keep]
            current = following
        return float((current * self.exit).sum() * self._trail[real[-1]])

    def _on(self, path: Path, item: int) -> Floats:
        mask = np.append(self.tree.code == path[item], False)
        return np.asarray(self.fit[item] * mask)

    def column_through(self, path: Path) -> list[int]:
        """Slots from C1 to the sacrum of the most usual column that holds all codes of a path."""
        codes = {code for code in path if code != FALSE}
        best: list[int] = []
        rank = (-1, -1.0)
        for end in np.flatnonzero(self.tree.code == SACRUM):
            slots = [int(end)]
            while self.tree.parent[slots[-1]] >= 0:
                slots.append(int(self.tree.parent[slots[-1]]))
            held = len(codes.intersection(self.tree.code[slots].tolist()))
            if (held, float(self.tree.prior[end])) > rank:
                rank, best = (held, float(self.tree.prior[end])), slots[::-1]
        return best

    def missed(self, path: Path) -> tuple[int, ...]:
        """Codes between the first and the last named item that no item has."""
        codes = [code for code in path if code != FALSE]
        seen = observable(self.tree, self.evidence.step)
        column = [int(self.tree.code[k]) for k in self.column_through(path) if seen[k]]
        if not codes or not {codes[0], codes[-1]} <= set(column):
            return ()
        return tuple(c for c in column[column.index(codes[0]) : column.index(codes[-1])] if c not in codes)


def posterior(chain: Chain, forward: list[Floats], backward: list[Floats]) -> list[dict[int, float]]:
    """Per item: code -> probability; what is missing to 1 is the chance of a false component."""
    total = chain.total(forward)
    result = []
    for before, after in zip(forward, backward, strict=True):
        per_slot = (before * after).sum(axis=(0, 1))[:-1] / total
        codes: dict[int, float] = {}
        for slot in np.flatnonzero(per_slot > 0):
            code = int(chain.tree.code[slot])
            codes[code] = codes.get(code, 0.0) + float(per_slot[slot])
        result.append(codes)
    return result

