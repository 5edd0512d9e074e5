"""What is known about the levels, as JSON for clients and records."""

from typing import Any

from lib.anatomy import NAME_OF
from lib.numbering.chain import Numbering

NOTHING = "none"
"""Name of "not a structure of the column"."""
PROBABILITY_DIGITS = 4


def numbering_report(numbering: Numbering | None) -> dict[str, Any] | None:
    """A numbering as JSON.

    Args:
        numbering: From the chain model, or None with the iterative method, which knows no doubt.

    Returns:
        Names, chances, competing numberings and what would settle them; None for None.
    """
    if numbering is None:
        return None
    return {
        "confident": bool(numbering.confident),
        "probability": _rounded(numbering.probability),
        "levels": [
            {
                "name": level.name,
                "kind": level.kind.value,
                "probability": _rounded(level.probability),
                "runner_up": _name(level.runner_up),
                "runner_up_probability": _rounded(level.runner_up_probability),
            }
            for level in numbering.levels
        ],
        "alternatives": [
            {
                "probability": _rounded(alternative.probability),
                "shift": alternative.shift,
                "names": [_name(code) for code in alternative.codes],
            }
            for alternative in numbering.alternatives
        ],
        "would_settle": list(numbering.would_settle),
        "missed": [_name(code) for code in numbering.missed],
    }


def _name(code: int) -> str:
    return NAME_OF.get(int(code), NOTHING)


def _rounded(probability: float) -> float:
    return round(float(probability), PROBABILITY_DIGITS)
