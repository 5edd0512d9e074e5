"""Decide on a candidate, and write the report that is stored with it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from totalspineseg_server.training import training_messages
from totalspineseg_server.training.compare import (
    CONFIDENCE,
    MARGINS,
    MIN_SUBJECTS,
    OWN_ANSWER_MARGINS,
    SINCE_BEGINNING,
    Comparison,
    SubjectScores,
    compare,
)

REFERENCE, HOLDOUT = "reference", "hold-out"
"""The two sets of scans that a candidate is judged on."""
OWN_ANSWERS: Final = "own answers"
"""Scans of the site that the weights in use name without doubt. They replace synthetic scans that these weights do not
handle."""

NUMBERS: Final = ("active", "candidate", "change", "lower", "margin")
"""The numbers of a comparison, in the order of the report."""


class Verdict(Enum):
    """The result of a comparison on one set, or on all sets."""

    PASS = "pass"
    FAIL = "fail"
    TOO_FEW = "too few"


@dataclass(frozen=True)
class SetReport:
    """The result on one set of subjects.

    Attributes:
        name: ``REFERENCE`` or ``HOLDOUT``.
        verdict: The result.
        subjects: Number of subjects.
        comparisons: One per measure.
        reason: The result in one sentence.
    """

    name: str
    verdict: Verdict
    subjects: int
    comparisons: tuple[Comparison, ...]
    reason: str


@dataclass(frozen=True)
class GateReport:
    """The gate's decision and its reasons.

    Attributes:
        active: Version in use.
        candidate: Version or training run that was judged.
        publish: Whether it may be put into use.
        sets: The results on the reference set and the hold-out; then on the own answers, if the weights in use do not
            handle all of the reference set; then, from the second training on, on the first two compared with the
            weights that the site began with.
        reason: The decision in one sentence, for the log and the list of models.
        left_out: Scans that could not be used, each with the reason.
        untouched: Number of hold-out structures that were not counted, because readers left them as the weights in use
            or their ancestors predicted them.
        judged_by: Set -> number of scans on which the weights in use and the candidate were compared.
    """

    active: str
    candidate: str
    publish: bool
    sets: tuple[SetReport, ...]
    reason: str
    left_out: tuple[str, ...] = ()
    untouched: int = 0
    judged_by: Mapping[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values (nan as null)."""
        return {
            "active": self.active,
            "candidate": self.candidate,
            "publish": self.publish,
            "reason": self.reason,
            "rule": {
                "min_subjects": MIN_SUBJECTS,
                "confidence": CONFIDENCE,
                "too_few": training_messages.TOO_FEW_DEFAULT,
            },
            "sets": [_set_json(entry) for entry in self.sets],
            "left_out": list(self.left_out),
            "untouched": self.untouched,
            "judged_by": dict(self.judged_by),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "GateReport":
        """Return the report that ``as_json`` wrote; its numbers are rounded, its decision is the same.

        Raises:
            KeyError: The content is not such a report.
            ValueError: A value does not belong in a report.
        """
        sets = tuple(_set_from(entry) for entry in content["sets"])
        active, candidate, reason = (str(content[key]) for key in ("active", "candidate", "reason"))
        left_out = tuple(map(str, content.get("left_out", ())))
        untouched = int(content.get("untouched", 0))
        judged_by = {str(name): int(count) for name, count in content.get("judged_by", {}).items()}
        return cls(active, candidate, bool(content["publish"]), sets, reason, left_out, untouched, judged_by)


@dataclass(frozen=True)
class Beginning:
    """The weights from which the site's first training began, compared with the candidate.

    Attributes:
        name: Name of the weights.
        reference: Scores of these weights (as ``active``) and of the candidate on the reference set.
        holdout: The same on the hold-out.
    """

    name: str
    reference: Sequence[SubjectScores]
    holdout: Sequence[SubjectScores]


def judge(
    active: str,
    candidate: str,
    *,
    reference: Sequence[SubjectScores],
    holdout: Sequence[SubjectScores],
    own_answers: Sequence[SubjectScores] = (),
    unhandled: int = 0,
    doubted: int = 0,
    beginning: Beginning | None = None,
    left_out: Sequence[str] = (),
    untouched: int = 0,
) -> GateReport:
    """Decide whether a candidate may be put into use.

    Args:
        active: Version in use.
        candidate: Version that is judged.
        reference: Scores on those scans of the fixed reference set that the version in use handles.
        holdout: Scores on the site's own subjects that are never used for training.
        own_answers: Scores against the answers of the version in use, on scans that it names without doubt.
        unhandled: Number of scans of the reference set that the version in use does not handle; they are not counted.
        doubted: Number of scans of the reference set whose names both versions call doubtful; they are not counted.
        beginning: Comparison with the weights that the first training began with; None if these are ``active``.
        left_out: Scans that could not be used, each with the reason, for the report.
        untouched: Number of hold-out structures that the readers left as predicted, for the report.

    Returns:
        The decision. No measure may fall beyond its margin on any set, nor beyond ``SINCE_BEGINNING`` since the
        beginning. With too few hold-out subjects the reference set alone decides. With too few reference subjects
        nothing is published, unless the version in use does not handle the others: then its own answers or the hold-out
        decide.
    """
    sets = [_judge_set(REFERENCE, reference), _judge_set(HOLDOUT, holdout)]
    scans = {REFERENCE: reference, HOLDOUT: holdout}
    if unhandled:
        sets.append(_judge_set(OWN_ANSWERS, own_answers, margins=OWN_ANSWER_MARGINS))
        scans[OWN_ANSWERS] = own_answers
    since = (
        ()
        if beginning is None
        else (
            _judge_set(f"{REFERENCE}, since {beginning.name}", beginning.reference, margins=SINCE_BEGINNING),
            _judge_set(f"{HOLDOUT}, since {beginning.name}", beginning.holdout, margins=SINCE_BEGINNING),
        )
    )
    publish, reason = _decide(sets, since)
    if unhandled:
        reason = training_messages.UNHANDLED.format(reason=reason, unhandled=unhandled)
    if doubted:
        reason = training_messages.DOUBTED.format(reason=reason, doubted=doubted)
    if left_out:
        reason = training_messages.LEFT_OUT.format(reason=reason, count=len(left_out))
    if untouched:
        reason = training_messages.UNTOUCHED.format(reason=reason, untouched=untouched)
    judged_by = {name: sum(len(entry.active) for entry in subjects) for name, subjects in scans.items()}
    return GateReport(active, candidate, publish, (*sets, *since), reason, tuple(left_out), untouched, judged_by)


def _decide(sets: Sequence[SetReport], since: Sequence[SetReport]) -> tuple[bool, str]:
    failed = [entry for entry in (*sets, *since) if entry.verdict is Verdict.FAIL]
    if failed:
        return False, "refused: " + "; ".join(e.reason for e in failed)
    reference, holdout, *instead = sets
    if reference.verdict is Verdict.TOO_FEW:
        passed = [entry.name for entry in (holdout, *instead) if entry.verdict is Verdict.PASS]
        if not instead or not passed:
            return False, "refused: " + "; ".join(e.reason for e in sets if e.verdict is Verdict.TOO_FEW)
        return True, training_messages.PASSED_ON.format(sets=" and the ".join(passed), reason=reference.reason)
    if holdout.verdict is Verdict.TOO_FEW:
        return True, training_messages.PASSED_ON_REFERENCE.format(reason=holdout.reason)
    return True, training_messages.PASSED


def _judge_set(name: str, subjects: Sequence[SubjectScores], *, margins: Mapping[str, float] = MARGINS) -> SetReport:
    comparisons = compare(subjects, margins=margins)
    # A subject whose scan shows only a sliver of a spine, so that no measure applies, does not count.
    count = max(comparison.subjects for comparison in comparisons)
    if count < MIN_SUBJECTS:
        reason = training_messages.TOO_FEW.format(name=name, needed=MIN_SUBJECTS, count=count)
        return SetReport(name, Verdict.TOO_FEW, count, comparisons, reason)
    fallen = [entry for entry in comparisons if not entry.allowed]
    if fallen:
        listed = ", ".join(
            training_messages.FELL_BY.format(measure=e.measure, change=e.change, lower=e.lower, margin=e.margin)
            for e in fallen
        )
        return SetReport(
            name, Verdict.FAIL, count, comparisons, training_messages.FELL.format(name=name, measures=listed)
        )
    return SetReport(name, Verdict.PASS, count, comparisons, training_messages.NOTHING_FELL.format(name=name))


def _set_json(entry: SetReport) -> dict[str, Any]:
    return {
        "name": entry.name,
        "verdict": entry.verdict.value,
        "subjects": entry.subjects,
        "reason": entry.reason,
        "measures": {c.measure: _comparison_json(c) for c in entry.comparisons},
    }


def _comparison_json(comparison: Comparison) -> Mapping[str, Any]:
    numbers = {key: getattr(comparison, key) for key in NUMBERS}
    rounded = {key: None if math.isnan(value) else round(value, 4) for key, value in numbers.items()}
    return rounded | {"subjects": comparison.subjects, "allowed": comparison.allowed}


def _set_from(content: Mapping[str, Any]) -> SetReport:
    comparisons = tuple(_comparison_from(name, values) for name, values in content["measures"].items())
    verdict = Verdict(content["verdict"])
    return SetReport(str(content["name"]), verdict, int(content["subjects"]), comparisons, str(content["reason"]))


def _comparison_from(measure: str, content: Mapping[str, Any]) -> Comparison:
    numbers = {key: math.nan if content[key] is None else float(content[key]) for key in NUMBERS}
    return Comparison(measure=measure, subjects=int(content["subjects"]), **numbers)
