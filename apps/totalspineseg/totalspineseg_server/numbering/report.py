"""Report a numbering: as JSON for clients, files and records, and as a sentence for people."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import DISCS, VERTEBRAE
from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.numbering import numbering_messages
from totalspineseg_server.numbering.chain import CONFIDENT_PROBABILITY, Level, Numbering
from totalspineseg_server.numbering.contradictions import is_bridged
from totalspineseg_server.numbering.evidence_weights import variants_in_view
from totalspineseg_server.numbering.findings import Finding
from totalspineseg_server.trust import certainty_of

DIGITS = 4
"""Number of digits of a probability: more would claim more than the model knows."""


def report(
    numbering: Numbering | None, findings: Sequence[Finding], *, affine: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """Return a numbering and the findings of the linter as plain JSON values.

    Args:
        numbering: From ``number_chain``; None for the iterative method, which has no probabilities.
        findings: From ``lint``; the findings of the numbering itself come before them. Not modified.
        affine: (4, 4) voxel -> RAS mm of the map to which the findings refer.

    Returns:
        ``certainty`` (certain, counted or doubtful; None if nothing is known), ``confident`` (whether it is certain),
        ``contradicted`` (whether something contradicts the names), ``counted_only`` (whether no reliable landmark is in
        view), ``counted_from``, ``probability``, ``probability_if_usual`` (of names that are right if the column has
        the usual count), ``variants`` (those that would change counted names, with their share of people), ``levels``,
        ``alternatives``, ``findings``, ``would_settle``, ``missed`` (codes of structures without a piece) and
        ``helped_by`` (series of the patient that were used).
    """
    own = () if numbering is None else numbering.findings
    found = [finding.as_dict(affine) for finding in (*own, *findings)]
    if numbering is None:
        return {
            "certainty": None,
            "confident": None,
            "contradicted": False,
            "counted_only": False,
            "counted_from": "",
            "probability": None,
            "probability_if_usual": None,
            "variants": [],
            "levels": [],
            "alternatives": [],
            "findings": found,
            "would_settle": [],
            "missed": [],
            "helped_by": [],
        }
    codes = [level.code for level in numbering.levels]
    return {
        "certainty": numbering.certainty,
        "confident": numbering.confident,
        "contradicted": numbering.contradicted,
        "counted_only": numbering.counted_only,
        "counted_from": numbering.counted_from,
        "probability": round(numbering.probability, DIGITS),
        "probability_if_usual": round(numbering.usual, DIGITS),
        "variants": [{"what": what, "share": share} for what, share in variants_in_view(codes).items()],
        "levels": [_level(level) for level in numbering.levels],
        "alternatives": [
            {"probability": round(a.probability, DIGITS), "shift": a.shift, "codes": list(a.codes)}
            for a in numbering.alternatives
        ],
        "findings": found,
        "would_settle": list(numbering.would_settle),
        "missed": list(numbering.missed),
        "helped_by": list(numbering.series_used),
    }


def sentence(known: Mapping[str, Any]) -> str:
    """Return the sentence that people read about a numbering, which is the same everywhere.

    Args:
        known: From ``report``, or a record that copied it. Not modified.

    Returns:
        The sentence; empty if nothing is known.
    """
    certainty, best = certainty_of(known), known.get("probability")
    if certainty == "certain":
        return numbering_messages.CERTAIN
    if certainty == "counted":
        return numbering_messages.COUNTED.format(counted_from=known["counted_from"]) + _unless(known["variants"])
    if certainty is None:
        return ""
    others = known.get("alternatives") or []
    fits = chance = ""
    if others:
        share = _share(round(others[0]["probability"], 2))
        fits = numbering_messages.ALSO_POSSIBLE.format(shift=others[0]["shift"], share=share)
    if best is not None and best < CONFIDENT_PROBABILITY:
        chance = numbering_messages.PROBABILITY.format(share=_share(round(best, 2)))
    reasons = "".join(f"; {reason}" for reason in _reasons(known, counted_only=not chance))
    return f"{numbering_messages.DOUBTFUL}{chance}{fits}{reasons}"


def _reasons(known: Mapping[str, Any], *, counted_only: bool) -> list[str]:
    """Return why names are doubtful, whatever their probability.

    Args:
        known: The report.
        counted_only: Whether to say that no reliable landmark is in view; a low probability says it already.
    """
    kinds = {finding["kind"] for finding in known.get("findings", ())}
    reasons = [reason for kind, reason in numbering_messages.REASONS.items() if kind in kinds]
    if known.get("contradicted") and not reasons:
        found = (reason for kind, reason in numbering_messages.CONTRADICTIONS.items() if kind in kinds)
        reasons.append(next(found, numbering_messages.CONTRADICTED))
    if is_bridged(known.get("missed", ())):
        reasons.append(numbering_messages.BRIDGED)
    if known.get("counted_only") and counted_only:
        reasons.append(numbering_messages.COUNTED_ONLY)
    return reasons


def _unless(variants: Sequence[Mapping[str, Any]]) -> str:
    """Return the variants that would change counted names, with their share of people; empty if there are none."""
    found = [numbering_messages.VARIANT.format(what=entry["what"], share=_share(entry["share"])) for entry in variants]
    listed = " or ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)
    return numbering_messages.COUNTED_UNLESS.format(variants=listed) if found else ""


def _share(share: float) -> str:
    return f"{100 * share:g}%"


def _level(level: Level) -> dict[str, Any]:
    runner_up = {"code": level.runner_up, "probability": round(level.runner_up_probability, DIGITS)}
    return {
        "code": level.code,
        "name": level.name,
        "kind": level.kind.value,
        "probability": round(level.probability, DIGITS),
        "runner_up": runner_up,
    }


DOUBTFUL_PROBABILITY: Final = CONFIDENT_PROBABILITY
"""A level of a doubtful numbering below this probability is marked in pictures and measurements."""
NAMED: Final = frozenset({*VERTEBRAE, *DISCS})
"""Structures that are a single level. In step 1 the sacrum's code stands for any vertebra."""


def doubtful_codes(numbering: Numbering | None, labels: LabelArray) -> frozenset[int]:
    """Return the codes of the doubtful levels: none if the numbering is certain or counted.

    A level of the map for which the numbering has no probability (the arch of a vertebra whose body is out of view)
    depends on its neighbors, so it is as certain as the whole numbering. All levels are doubtful if something
    contradicts all names (a pin that meets no structure), or if the whole is doubtful but no single level is.

    Args:
        numbering: The numbering; None with the iterative method, which has no doubts.
        labels: The codes that follow from it. Not modified.

    Returns:
        The codes; empty with the iterative method.
    """
    if numbering is None or numbering.certainty != "doubtful":
        return frozenset()
    unsure = {level.code for level in numbering.levels if level.probability < DOUBTFUL_PROBABILITY}
    present = set(np.flatnonzero(np.bincount(labels.ravel(order="K"), minlength=256)).tolist())
    named = present & NAMED
    by_themselves = bool(unsure) and not numbering.contradicted
    unsure |= named - {level.code for level in numbering.levels} if by_themselves else named
    return frozenset(unsure)
