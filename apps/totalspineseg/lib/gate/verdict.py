"""The gate's decision on a candidate, and the report that is kept with it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from lib.gate.compare import CONFIDENCE, MIN_SUBJECTS, RESAMPLES, Comparison, SubjectScores, compare

REFERENCE, HOLDOUT = "reference", "hold-out"
"""The two sets a candidate is judged on."""
TOO_FEW_DEFAULT: Final = (
    "with too few hold-out subjects the reference set alone decides, and the report says so; "
    "with too few reference subjects nothing is published"
)


class Verdict(Enum):
    """What the comparison on one set, or on both, says."""

    PASS = "pass"
    FAIL = "fail"
    TOO_FEW = "too few"


@dataclass(frozen=True)
class SetReport:
    """One set of subjects.

    Attributes:
        name: ``REFERENCE`` or ``HOLDOUT``.
        verdict: What this set says.
        subjects: How many subjects it has.
        comparisons: One per measure.
        reason: One sentence.
    """

    name: str
    verdict: Verdict
    subjects: int
    comparisons: tuple[Comparison, ...]
    reason: str


@dataclass(frozen=True)
class GateReport:
    """The decision.

    Attributes:
        active: Version that is served.
        candidate: Version or run that asks to be served.
        publish: Whether it may be served.
        sets: The reports of the reference set and of the hold-out.
        reason: One sentence for the log and the model list.
    """

    active: str
    candidate: str
    publish: bool
    sets: tuple[SetReport, ...]
    reason: str

    def as_json(self) -> dict[str, Any]:
        """The report as plain JSON values (nan as null)."""
        return {
            "active": self.active,
            "candidate": self.candidate,
            "publish": self.publish,
            "reason": self.reason,
            "rule": {
                "min_subjects": MIN_SUBJECTS,
                "confidence": CONFIDENCE,
                "resamples": RESAMPLES,
                "too_few": TOO_FEW_DEFAULT,
            },
            "sets": [_set_json(entry) for entry in self.sets],
        }


def judge(
    active: str, candidate: str, *, reference: Sequence[SubjectScores], holdout: Sequence[SubjectScores]
) -> GateReport:
    """Decide whether a candidate may be served.

    Args:
        active: Version that is served.
        candidate: Version that asks.
        reference: Scores on the fixed reference set.
        holdout: Scores on the site's own subjects that are never trained on.

    Returns:
        The decision. Nothing may fall beyond its margin on either set; too few hold-out subjects leave the
        decision to the reference set, too few reference subjects publish nothing.
    """
    sets = (_judge_set(REFERENCE, reference), _judge_set(HOLDOUT, holdout))
    failed = [entry for entry in sets if entry.verdict is Verdict.FAIL]
    if failed:
        return GateReport(active, candidate, False, sets, "not served: " + "; ".join(e.reason for e in failed))
    if sets[0].verdict is Verdict.TOO_FEW:
        return GateReport(active, candidate, False, sets, f"not served: {sets[0].reason}")
    if sets[1].verdict is Verdict.TOO_FEW:
        reason = f"served on the reference set alone: {sets[1].reason}"
        return GateReport(active, candidate, True, sets, reason)
    return GateReport(active, candidate, True, sets, "served: nothing fell beyond its margin on either set")


def _judge_set(name: str, subjects: Sequence[SubjectScores]) -> SetReport:
    comparisons = compare(subjects)
    count = len(subjects)
    if count < MIN_SUBJECTS:
        reason = f"the {name} set needs {MIN_SUBJECTS} subjects, got {count}"
        return SetReport(name, Verdict.TOO_FEW, count, comparisons, reason)
    fallen = [entry for entry in comparisons if not entry.allowed]
    if fallen:
        listed = ", ".join(f"{e.measure} {e.change:+.3f} (worst {e.lower:+.3f}, allowed -{e.margin:g})" for e in fallen)
        return SetReport(name, Verdict.FAIL, count, comparisons, f"on the {name} set these fell: {listed}")
    return SetReport(name, Verdict.PASS, count, comparisons, f"nothing fell beyond its margin on the {name} set")


def _set_json(entry: SetReport) -> dict[str, Any]:
    return {
        "name": entry.name,
        "verdict": entry.verdict.value,
        "subjects": entry.subjects,
        "reason": entry.reason,
        "measures": {c.measure: _comparison_json(c) for c in entry.comparisons},
    }


def _comparison_json(comparison: Comparison) -> Mapping[str, Any]:
    numbers = {key: getattr(comparison, key) for key in ("active", "candidate", "change", "lower", "margin")}
    rounded = {key: None if math.isnan(value) else round(value, 4) for key, value in numbers.items()}
    return rounded | {"subjects": comparison.subjects, "allowed": comparison.allowed}
