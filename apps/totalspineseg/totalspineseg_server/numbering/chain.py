"""Name a column from all evidence at once, with the probability of each name."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from totalspineseg_server.anatomy import (
    BY_CODE,
    C1,
    C2,
    DISC_C2_C3,
    DISC_C7_T1,
    DISC_L5_S,
    LANDMARK_DISCS,
    LUMBAR,
    NAME_OF,
    SACRUM,
    THORACIC,
    Kind,
)
from totalspineseg_server.numbering import numbering_messages
from totalspineseg_server.numbering.advice import shift_text, would_settle
from totalspineseg_server.numbering.alignment import elsewhere_finding, misplaced
from totalspineseg_server.numbering.contradictions import (
    below_l5_s,
    contradicts,
    is_bridged,
    left_out,
    moved_landmarks,
)
from totalspineseg_server.numbering.divide import divide
from totalspineseg_server.numbering.evidence import (
    Evidence,
    Floats,
    Item,
    Labels,
    Localizer,
    Pin,
    Step1Names,
    gather,
    landmark_shares,
)
from totalspineseg_server.numbering.evidence_weights import CAREFUL, MOSTLY
from totalspineseg_server.numbering.findings import Finding, found_at
from totalspineseg_server.numbering.pins import unmet_finding, with_pins
from totalspineseg_server.numbering.solver import FALSE, NOTHING, Chain, Path, State, posterior
from totalspineseg_server.numbering.unnamed import adopt, name_loose
from totalspineseg_server.transforms.canal import ruler_of
from totalspineseg_server.transforms.labeling import UNNAMED, Naming
from totalspineseg_server.transforms.pieces import Pieces, Step, canal_mask, with_plain_vertebrae
from totalspineseg_server.trust import UNMEASURED, Certainty, Trust

__all__ = ["CONFIDENT_PROBABILITY", "Alternative", "Level", "Numbering", "Pin", "number_chain"]

CONFIDENT_PROBABILITY: Final = 0.985
"""Names are certain from this probability that every level is right: a reader should expect at most one wrong scan in
seventy. Lumbar names counted from the sacrum alone stay below (0.94-0.97: one patient in twenty-five has six lumbar
vertebrae), and so do thoracic names counted up from T12-L1 without odd/even classes (0.97-0.982: one in forty has 11 or
13 thoracic vertebrae). Names between two landmarks, and those counted down from C2-C3, are above 0.988."""
COUNTED_PROBABILITY: Final = 0.95
"""Names are counted from this probability that every level is right in a column of the usual count. They are doubtful
if step 1 named the discs differently, or if a whole level between them is missing, so that nobody can count there."""
USUAL_ENOUGH: Final = 0.75
"""Smallest probability of a column of the usual count with which names may be counted; below it the map itself
contradicts the count."""
WORTH_TRYING: Final = 0.002
"""Smallest probability of a name for a piece that may start a competing numbering."""
WORTH_NAMING: Final = 0.005
"""Smallest probability of a competing numbering that is reported."""
MAX_ALTERNATIVES: Final = 5
OFTEN: Final = 0.15
"""Names are doubtful if their chance of being wrong for reasons outside their probabilities is greater than this."""
CONTRADICTED_WRONG: Final = 0.3
"""Chance that names are wrong for reasons outside their probabilities if a large piece or a landmark contradicts them;
for networks that nobody has measured."""
CONTRADICTED: Final = 0.5
"""Highest probability of a numbering that another map of the same scan contradicts, if each is certain by itself."""
LIKELY: Final = 0.5
"""A doubtful step 1 that names the levels differently makes the names of step 2 doubtful if its own names are at
least this probable."""
CLEAR: Final = 1 - WORTH_NAMING
"""If every name is above this probability, nothing competes, and the best names are the best numbering."""
SAME: Final = 1e-9
"""Relative difference of two weights that differ only by rounding."""


@dataclass(frozen=True)
class Level:
    """A named level.

    Attributes:
        code: Its code.
        name: Its name.
        kind: Disc, vertebra or sacrum.
        probability: Probability that the name is right.
        runner_up: Code of the second-best name; 0 if that is "not a structure of the column".
        runner_up_probability: Its probability.
        piece: Index in ``Pieces.discs`` or ``Pieces.vertebrae``; -1 for C1 of a step-1 map.
    """

    code: int
    name: str
    kind: Kind
    probability: float
    runner_up: int
    runner_up_probability: float
    piece: int


@dataclass(frozen=True)
class Alternative:
    """A competing numbering.

    Attributes:
        probability: Probability that all its names are right.
        shift: How it differs from the best numbering, for a reader.
        codes: Its codes for the levels of ``Numbering.levels``, in their order; 0 = not a structure.
    """

    probability: float
    shift: str
    codes: tuple[int, ...]


@dataclass(frozen=True)
class Numbering:
    """The names of a column, with their certainty and findings.

    Attributes:
        pieces: The named pieces; a piece that contained two levels has been cut.
        naming: Code per piece of ``pieces``, 0 = no structure of the column.
        probability: Probability that all names are right.
        levels: Named levels, superior to inferior; one for each structure, even if it is split.
        alternatives: Competing numberings, the most probable first.
        would_settle: Means that would decide between the alternatives; empty if the names are certain.
        missed: Codes of structures in view that have no piece.
        findings: Pieces without a name, and other places for a reader to check.
        series_used: Named series of the patient whose levels overlap this scan.
        unmet: Codes of pins that meet no structure.
        contradicted: Whether a large piece, a landmark, a pin or the other step contradicts the names, which makes all
            levels doubtful.
        usual: Probability that all names are right if the column has the usual count.
        as_usual: Probability that the column has the usual count.
        counted_only: Whether lumbar or thoracic names rest on the usual count, because no reliable landmark above them
            is in view.
        failure: Chance, part of all probabilities, that names are wrong for a reason that the evidence does not show.
    """

    pieces: Pieces
    naming: Naming
    probability: float
    levels: tuple[Level, ...]
    alternatives: tuple[Alternative, ...]
    would_settle: tuple[str, ...]
    missed: tuple[int, ...]
    findings: tuple[Finding, ...] = ()
    series_used: tuple[str, ...] = ()
    unmet: tuple[int, ...] = ()
    contradicted: bool = False
    usual: float = 0.0
    as_usual: float = 0.0
    counted_only: bool = False
    failure: float = 0.0

    @property
    def certainty(self) -> Certainty:
        """The answer to "are these names right?" by what is in view; doubtful if networks often fail unnoticed."""
        if self.contradicted or not self.levels or self.failure > OFTEN:
            return "doubtful"
        if self.probability >= CONFIDENT_PROBABILITY * (1.0 - self.failure) and not self.counted_only:
            return "certain"
        differ = any(finding.kind == "steps_differ" for finding in self.findings)
        likely = self.usual >= COUNTED_PROBABILITY * (1.0 - self.failure) and self.as_usual >= USUAL_ENOUGH
        return "counted" if self.counted_from and likely and not differ and not self.bridged else "doubtful"

    @property
    def confident(self) -> bool:
        """Whether the names are certain."""
        return self.certainty == "certain"

    @property
    def bridged(self) -> bool:
        """Whether a whole level is missing between named ones."""
        return is_bridged(self.missed)

    @property
    def counted_from(self) -> str:
        """The end of the column in view from which names can be counted. Empty if neither end is in view, or if the
        disc on the sacrum was not found."""
        codes = {level.code for level in self.levels}
        if DISC_L5_S in codes:
            return "up from the sacrum"
        if SACRUM in codes:
            return ""
        return "down from C2" if codes & {C1, C2, DISC_C2_C3} else ""


def number_chain(
    pieces: Pieces,
    raw: Labels,
    step: Step,
    *,
    affine: Floats,
    localizers: Sequence[Localizer] = (),
    pins: Sequence[Pin] = (),
    step1: Step1Names | None = None,
    trust: Trust = UNMEASURED,
) -> Numbering:
    """Name the pieces of one map.

    Args:
        pieces: From ``find_pieces``.
        raw: uint8 (X, Y, Z) RAS, classes of the step's network. Not modified.
        step: 1 or 2.
        affine: (4, 4) voxel -> RAS mm.
        localizers: Other series of the patient on the same grid. One that lies elsewhere is not used, and a finding
            says so. Not modified.
        pins: Levels that a reader fixed.
        step1: Names of step 1 in this scan, on the same grid. Pins replace the names of a network. Not modified.
        trust: Measured errors of the network that made the map.

    Returns:
        The best numbering; without pieces, an empty numbering that is not certain.

    Raises:
        ValueError: A pin does not name a level.
    """
    ruler = ruler_of(canal_mask(raw, step), np.linalg.norm(affine[:3, :3], axis=0))
    pieces = divide(with_plain_vertebrae(pieces, raw, ruler), raw, ruler)
    if step1 is not None and pins and not step1.by_reader:
        step1 = None
    misplacements = [(series, misplaced(series, pieces, ruler)) for series in localizers]
    localizers = [series for series, why in misplacements if not why]
    others = (*localizers, *(() if step1 is None else (step1.discs,)))
    evidence = gather(pieces, raw, step, ruler=ruler, localizers=others, trust=trust)
    evidence, unmet = with_pins(evidence, pieces, pins, affine=affine, ruler=ruler)
    if step1 is None or step1.by_reader:
        numbering = number_evidence(pieces, evidence)
    else:
        numbering = _number_twice(pieces, evidence, step1)
    helped = tuple(
        series.source
        for k, series in enumerate(localizers)
        if series.source and any(item.overlaps[k].shares for item in evidence.items if item.overlaps)
    )
    elsewhere = (elsewhere_finding(series, why) for series, why in misplacements if why)
    # Only what a reader said about this scan may contradict a landmark of the network.
    names, pinned = numbering.naming.discs, {pin.code for pin in pins} - set(unmet)
    by_reader = step1 is not None and step1.by_reader
    moved = () if by_reader else moved_landmarks(names, pieces, pinned=pinned, missed=numbering.missed)
    findings = (*map(unmet_finding, unmet), *elsewhere, *moved, *numbering.findings)
    # A landmark that both steps put on different discs is lost, if step 1 put it where the names have it.
    lost = frozenset[int]()
    if step1 is not None and not by_reader and not _otherwise(numbering, evidence):
        lost = step1.landmarks
    against = bool(moved) and not _outvoted(moved, numbering, trust, lost)
    contradicted = numbering.contradicted or bool(unmet) or against
    if not pins and not by_reader:
        failures = trust.contradicted if contradicted else trust.uncontradicted
        numbering = _less_probable(numbering, failures.chance(CONTRADICTED_WRONG if contradicted else 0.0))
    # Step 1 is certain by the same rule, and may see more.
    other_evidence = bool(localizers or pins or by_reader or (step1 is not None and step1.confident))
    return _settled(
        replace(
            numbering,
            series_used=helped,
            unmet=unmet,
            findings=findings,
            contradicted=contradicted,
            counted_only=not other_evidence and _counted_only(numbering, trust),
        )
    )


def number_evidence(pieces: Pieces, evidence: Evidence) -> Numbering:
    """Name pieces from measured evidence.

    Args:
        pieces: The pieces.
        evidence: From ``gather``.

    Returns:
        As in ``number_chain``.
    """
    if not evidence.items:
        naming = Naming((UNNAMED,) * len(pieces.discs), (UNNAMED,) * len(pieces.vertebrae))
        return Numbering(pieces, naming, 0.0, (), (), would_settle((), ()), ())
    chain = Chain(evidence)
    before, after = chain.forward("sum"), chain.backward("sum")
    chances = posterior(chain, before, after)
    total = chain.total(before)
    best, others = _ranked(chain, chances, total)
    naming = adopt(_naming(best, evidence, pieces), evidence, best)
    along = chain.forward_along(best)
    slots = chain.column_through(best, along)
    probability = min(1.0, chain.total(along) / total)
    usual, as_usual = chain.as_usual(best, total)
    depths = {int(chain.tree.code[k]): float(chain.tree.depth_mm[k]) for k in slots}
    naming = name_loose(naming, pieces, evidence, best, depths)
    levels = _levels(best, evidence, chances, naming)
    indices = [k for level in levels for k in [_item_of(level, evidence)]]
    alternatives = _alternatives(
        [best[k] for k in indices], [([p[k] for k in indices], chance) for p, chance in others]
    )
    missed = chain.missed(best, slots)
    out = left_out(best, evidence, naming)
    contradicted = contradicts(out, best, evidence, missed)
    below = below_l5_s(out, best, evidence)
    findings = tuple(_finding(k, evidence, pieces, below_l5_s=k == below) for k in out)
    return _settled(
        Numbering(
            *(pieces, naming, probability, levels, alternatives, (), missed, findings),
            contradicted=contradicted,
            usual=min(1.0, usual),
            as_usual=min(1.0, as_usual),
        )
    )


def _less_probable(numbering: Numbering, failure: float) -> Numbering:
    """Return a numbering whose names may all be wrong for a reason that the evidence does not show."""
    right = 1.0 - failure
    levels = tuple(replace(level, probability=right * level.probability) for level in numbering.levels)
    return replace(
        numbering,
        alternatives=tuple(replace(other, probability=right * other.probability) for other in numbering.alternatives),
        probability=right * numbering.probability,
        usual=right * numbering.usual,
        levels=levels,
        failure=failure,
    )


def _settled(numbering: Numbering) -> Numbering:
    """Return a numbering with the means that would make it certain, unless it is certain already."""
    levels, others = numbering.levels, numbering.alternatives
    settle = () if numbering.confident else would_settle(tuple(v.code for v in levels), tuple(a.codes for a in others))
    return replace(numbering, would_settle=settle)


BELIEVED: Final = 0.75
"""Share of scans in which a landmark class must lie on its own disc to contradict names by itself."""


def _outvoted(moved: Sequence[Finding], numbering: Numbering, trust: Trust, lost: Collection[int]) -> bool:
    """Return whether names stay certain in spite of contradicted landmarks: these are often wrong, or lost."""
    landmarks = {code for finding in moved for code in _landmarks_of(finding, numbering)} - set(lost)
    return not any(_is_believed(code, trust) for code in landmarks)


def _counted_only(numbering: Numbering, trust: Trust) -> bool:
    """Return whether lumbar or thoracic vertebrae are named without a reliable landmark above them in view.

    Below T12-L1 this landmark identifies the lumbar ones; nothing but C2 to C7-T1 tells whether there are 11, 12 or 13
    thoracic ones.
    """
    codes = {level.code for level in numbering.levels}
    if codes & {C1, C2}:
        return False
    reliable = {code for code in LANDMARK_DISCS if code in codes and _is_believed(code, trust)}
    thoracic = bool(codes & set(THORACIC)) and not reliable & {DISC_C2_C3, DISC_C7_T1}
    return thoracic or (bool(codes & set(LUMBAR)) and not reliable - {DISC_L5_S})


def _is_believed(landmark: int, trust: Trust) -> bool:
    return trust.chances(LANDMARK_DISCS.index(landmark), careful=CAREFUL).own >= BELIEVED


def _landmarks_of(finding: Finding, numbering: Numbering) -> list[int]:
    """Return the landmarks whose classes the network gave to the disc of a finding."""
    discs = zip(numbering.naming.discs, numbering.pieces.discs, strict=True)
    return [
        landmark
        for code, piece in discs
        if code == finding.code
        for landmark, share in landmark_shares(piece).items()
        if share > MOSTLY
    ]


def _number_twice(pieces: Pieces, evidence: Evidence, step1: Step1Names) -> Numbering:
    """Name the map by itself and, if that is not certain or contradicts step 1, again with the names of step 1.

    Both maps come from one scan, and from networks that learned from the same examples. If neither is certain by
    itself, their agreement proves nothing more; if both are certain of different names, neither can be relied on.
    Names that step 1 only counted cannot be relied on either, if step 2 by itself has others.

    Args:
        pieces: The pieces.
        evidence: From ``gather``, with step 1 as the last localizer.
        step1: Names of step 1, with their probabilities.
    """
    alone = number_evidence(pieces, replace(evidence, items=tuple(map(_without_last_series, evidence.items))))
    if not _otherwise(alone, evidence) and (alone.confident or not step1.confident):
        return _as_sure_as(alone, step1)
    if step1.certainty == "doubtful" and step1.probability <= alone.probability:
        differing = tuple(_differs(k, code, alone, evidence) for k, code in _otherwise(alone, evidence)[:1])
        against = alone.contradicted or (bool(differing) and step1.probability > LIKELY)
        return _settled(replace(alone, findings=alone.findings + differing, contradicted=against))
    both = number_evidence(pieces, evidence)
    if not _otherwise(alone, evidence) and not _otherwise(both, evidence):
        return _as_sure_as(both, step1)
    differing = tuple(_differs(k, code, both, evidence) for k, code in _otherwise(both, evidence)[:1])
    against = bool(differing) and (alone.certainty != "doubtful" or step1.certainty == "doubtful")
    if not differing and step1.certainty == "counted":
        # Step 1 outvotes what step 2 shows, but is not certain itself.
        differing = tuple(_differs(k, code, alone, evidence) for k, code in _otherwise(alone, evidence)[:1])
        against = bool(differing)
    both = replace(both, findings=both.findings + differing, contradicted=both.contradicted or against)
    if alone.confident != step1.confident:
        return _settled(both)
    most = CONTRADICTED if alone.confident else max(alone.probability, step1.probability)
    before = {} if alone.confident else {level.code: level.probability for level in alone.levels}
    levels = tuple(
        replace(level, probability=min(level.probability, max(most, before.get(level.code, 0.0))))
        for level in both.levels
    )
    usual = min(both.usual, max(alone.usual, step1.usual))
    return _settled(replace(both, probability=min(both.probability, most), levels=levels, usual=usual))


def _as_sure_as(alone: Numbering, step1: Step1Names) -> Numbering:
    """Return a numbering with which step 1 agrees, with the higher probability of the two."""
    if step1.usual <= alone.usual or alone.confident:
        return alone
    levels = tuple(replace(v, probability=max(v.probability, step1.probability)) for v in alone.levels)
    probability = max(alone.probability, step1.probability)
    # Competing numberings share the rest.
    rest = (1.0 - probability) / (1.0 - alone.probability) if probability > alone.probability else 1.0
    others = tuple(replace(other, probability=rest * other.probability) for other in alone.alternatives)
    return _settled(
        replace(
            alone,
            probability=probability,
            alternatives=others,
            usual=step1.usual,
            as_usual=step1.as_usual,
            levels=levels,
        )
    )


def _without_last_series(item: Item) -> Item:
    return replace(item, overlaps=item.overlaps[:-1])


def _otherwise(numbering: Numbering, evidence: Evidence) -> list[tuple[int, int]]:
    """Return the discs that the last localizer names differently: index of the item -> its code there."""
    found = []
    for k, item in enumerate(evidence.items):
        shares = item.overlaps[-1].shares if item.kind is Kind.DISC and item.overlaps else {}
        named = numbering.naming.discs[item.index] if shares else UNNAMED
        if named != UNNAMED and (code := max(shares, key=lambda c: shares[c])) != named:
            found.append((k, code))
    return found


def _differs(k: int, code: int, numbering: Numbering, evidence: Evidence) -> Finding:
    index = evidence.items[k].index
    named, piece = numbering.naming.discs[index], numbering.pieces.discs[index]
    text = numbering_messages.STEPS_DIFFER.format(step1=NAME_OF[code], step2=NAME_OF[named])
    return found_at(piece, "steps_differ", named, text)


def _ranked(
    chain: Chain, chances: Sequence[Mapping[int, float]], total: float
) -> tuple[Path, list[tuple[Path, float]]]:
    """Return the best numbering, and the competing ones with their probabilities, the most probable first."""
    clear = [max(codes, key=lambda code: codes[code]) for codes in chances if codes]
    if len(clear) == len(chances) and all(codes[c] > CLEAR for codes, c in zip(chances, clear, strict=True)):
        return tuple(clear), []
    before, after = chain.forward("max"), chain.backward("max")
    starts: list[tuple[float, int, State]] = []
    # In a map of noise no name may be worth trying; then start with the most probable one.
    worth = min(WORTH_TRYING, max((max(codes.values()) for codes in chances if codes), default=0.0))
    for k, codes in enumerate(chances):
        joint = before[k] * after[k]
        for code, chance in codes.items():
            if chance >= worth:
                values = joint * (chain.tree.code == code)
                scale, view, slot = np.unravel_index(int(values.argmax()), values.shape)
                starts.append((float(values[scale, view, slot]), k, (int(scale), int(view), int(slot))))
    starts.sort(key=lambda start: -start[0])
    paths: list[Path] = []
    traced: list[float] = []
    for value, k, state in starts:
        # A path has the same maximum wherever its trace starts.
        if any(abs(value - other) <= SAME * other for other in traced):
            continue
        traced.append(value)
        path = chain.trace(k, state, before, after)
        if all(_differ(path, other) for other in paths):
            paths.append(path)
        if len(paths) > MAX_ALTERNATIVES:
            break
    ranked = sorted(((path, chain.agreeing(path) / total) for path in paths), key=lambda pair: -pair[1])
    best = ranked[0][0]
    # A numbering that agrees with the best one if the differently named pieces are doubted does not compete with it.
    others = [(path, chance - chain.agreeing(_common(path, best)) / total) for path, chance in ranked[1:]]
    others.sort(key=lambda pair: -pair[1])
    return best, [pair for pair in others if pair[1] >= WORTH_NAMING]


def _alternatives(best: Sequence[int], others: Sequence[tuple[Sequence[int], float]]) -> tuple[Alternative, ...]:
    """Return competing numberings for a reader; those that differ from the best one in the same way are one."""
    found: dict[str, Alternative] = {}
    for codes, chance in others:
        shift = shift_text(best, codes)
        same = found.get(shift)
        found[shift] = (
            Alternative(chance, shift, tuple(codes))
            if same is None
            else replace(same, probability=same.probability + chance)
        )
    return tuple(sorted(found.values(), key=lambda other: -other.probability))


def _common(path: Path, other: Path) -> Path:
    """Return the path where it agrees with another one, and ``NOTHING`` (no structure at all) where their names
    differ."""
    return tuple(a if a == b or FALSE in (a, b) else NOTHING for a, b in zip(path, other, strict=True))


def _differ(path: Path, other: Path) -> bool:
    """Return whether two numberings name a piece differently (a doubt that it is a structure does not count)."""
    return any(a != b for a, b in zip(path, other, strict=True) if FALSE not in (a, b))


def _naming(path: Path, evidence: Evidence, pieces: Pieces) -> Naming:
    discs, vertebrae = [UNNAMED] * len(pieces.discs), [UNNAMED] * len(pieces.vertebrae)
    for code, item in zip(path, evidence.items, strict=True):
        if item.index >= 0:
            (discs if item.kind is Kind.DISC else vertebrae)[item.index] = code
    return Naming(tuple(discs), tuple(vertebrae))


def _levels(
    path: Path, evidence: Evidence, chances: Sequence[Mapping[int, float]], naming: Naming
) -> tuple[Level, ...]:
    """Return a level for each code, described by its largest piece."""
    largest: dict[int, int] = {}
    for k, code in enumerate(path):
        if code != FALSE:
            other = largest.get(code)
            if other is None or evidence.items[k].volume_mm3 > evidence.items[other].volume_mm3:
                largest[code] = k
    names = naming.discs + naming.vertebrae
    return tuple(_level(code, evidence.items[k], chances[k], names.count(code)) for code, k in largest.items())


def _level(code: int, item: Item, chances: Mapping[int, float], pieces: int) -> Level:
    others = {c: p for c, p in chances.items() if c != code}
    false = max(0.0, 1.0 - sum(chances.values()))
    probability = min(1.0, chances.get(code, 0.0))
    if pieces > 1:
        # For the name it does not matter which piece is the structure and which is attached to it.
        probability, false = min(1.0, probability + false), 0.0
    others[FALSE] = false
    runner_up = max(others, key=lambda c: others[c])
    return Level(code, NAME_OF[code], BY_CODE[code].kind, probability, runner_up, others[runner_up], item.index)


def _finding(k: int, evidence: Evidence, pieces: Pieces, *, below_l5_s: bool) -> Finding:
    item = evidence.items[k]
    piece = (pieces.discs if item.kind is Kind.DISC else pieces.vertebrae)[item.index]
    if below_l5_s:
        return found_at(piece, "below_l5_s", UNNAMED, numbering_messages.BELOW_L5_S.format(voxels=piece.voxels))
    text = numbering_messages.LEFT_OUT.format(kind=numbering_messages.A_KIND[item.kind], voxels=piece.voxels)
    return found_at(piece, "left_out", UNNAMED, text)


def _item_of(level: Level, evidence: Evidence) -> int:
    disc = level.kind is Kind.DISC
    return next(
        k for k, item in enumerate(evidence.items) if item.index == level.piece and (item.kind is Kind.DISC) == disc
    )
