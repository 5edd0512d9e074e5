"""What is known about a numbering, as JSON for clients, files and records, and as the sentence people read."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lib.certainty import certainty_of
from lib.numbering.chain import CONFIDENT_PROBABILITY, Level, Numbering
from lib.numbering.findings import Finding
from lib.numbering.weights import variants_in_view

DIGITS = 4
"""Digits of a probability: more would claim more than the model knows."""


def report(
    numbering: Numbering | None, findings: Sequence[Finding], *, affine: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """A numbering and what the linter found, JSON native.

    Args:
        numbering: From ``number_chain``; None for the iterative method, which knows no probabilities.
        findings: From ``lint``; those of the numbering itself go before.
        affine: (4, 4) voxel -> RAS mm of the map the findings point into.

    Returns:
        ``certainty`` (certain, counted or doubtful; None where nothing is known), ``confident`` (whether it is
        certain), ``contradicted`` (whether what was found speaks against the names), ``counted_only`` (whether no
        landmark in view can be believed), ``counted_from``, ``probability``, ``probability_if_usual`` (of names that
        are right if the column has the usual count), ``variants`` (what would change counted names, with its share of
        people), ``levels``, ``alternatives``, ``findings``, ``would_settle``, ``missed`` (codes of structures without a
        piece) and ``helped_by`` (series of the patient that counted).
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
        "helped_by": list(numbering.helped_by),
    }


def sentence(known: Mapping[str, Any]) -> str:
    """What people read of a numbering: the one wording, everywhere.

    Args:
        known: From ``report``, or a record that took it over.

    Returns:
        Empty where nothing is known.
    """
    certainty, best = certainty_of(known), known.get("probability")
    if certainty == "certain":
        return "the names are certain"
    if certainty == "counted":
        return f"the names are counted {known['counted_from']}, and {_only_if(known['variants'])}"
    if certainty is None:
        return ""
    others = known.get("alternatives") or []
    fits = f"; also possible: {others[0]['shift']} ({_share(round(others[0]['probability'], 2))})" if others else ""
    chance = ""
    if best is not None and best < CONFIDENT_PROBABILITY:
        chance = f", right with a probability of {_share(round(best, 2))}"
    reasons = "".join(f"; {reason}" for reason in _reasons(known, counted_only=not chance))
    return f"the names are doubtful{chance}{fits}{reasons}"


def _reasons(known: Mapping[str, Any], *, counted_only: bool) -> list[str]:
    """Why names are doubtful whatever their chance; ``counted_only``: where no low chance says it already."""
    kinds = {finding["kind"] for finding in known.get("findings", ())}
    reasons = [reason for kind, reason in REASONS.items() if kind in kinds]
    if known.get("contradicted") and not reasons:
        reasons.append("what was found contradicts them")
    if known.get("counted_only") and counted_only:
        reasons.append("no landmark in view can be believed")
    return reasons


REASONS: Final = MappingProxyType(
    {
        "pin_unmet": "a fixed level lies near no structure of its kind",
        "steps_differ": "step 1 and step 2 name the discs differently",
    }
)
"""Findings that speak against all names, in short."""


def _only_if(variants: Sequence[Mapping[str, Any]]) -> str:
    """What would change counted names, the share of people in brackets."""
    if not variants:
        return "nothing in view contradicts them"
    others = " or ".join(f"{entry['what']} ({_share(entry['share'])})" for entry in variants)
    return f"nothing in view contradicts them; in people with {others} they would be wrong"


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
