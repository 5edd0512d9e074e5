"""What is known about a numbering, as JSON for clients, files and records."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lib.numbering.chain import Level, Numbering
from lib.numbering.findings import Finding

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
        ``confident`` (False = abstained; None where nothing is known), ``probability``, ``levels``,
        ``alternatives``, ``findings``, ``would_settle``, ``missed`` (codes of structures without a piece)
        and ``helped_by`` (series of the patient that counted).
    """
    own = () if numbering is None else numbering.findings
    found = [finding.as_dict(affine) for finding in (*own, *findings)]
    if numbering is None:
        return {
            "confident": None,
            "probability": None,
            "levels": [],
            "alternatives": [],
            "findings": found,
            "would_settle": [],
            "missed": [],
            "helped_by": [],
        }
    return {
        "confident": numbering.confident,
        "probability": round(numbering.probability, DIGITS),
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


def doubt(probability: float) -> str:
    """What people read of a numbering that abstains, of this probability."""
    return f"the numbering is not certain (probability {probability:.2f})"


def _level(level: Level) -> dict[str, Any]:
    runner_up = {"code": level.runner_up, "probability": round(level.runner_up_probability, DIGITS)}
    return {
        "code": level.code,
        "name": level.name,
        "kind": level.kind.value,
        "probability": round(level.probability, DIGITS),
        "runner_up": runner_up,
    }
