"""Define the three answers to "are these names right?" in reports and records."""

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

Certainty = Literal["certain", "counted", "doubtful"]
"""Certain: what is in view identifies the names. Counted: they were counted up from the sacrum or down from C2, nothing
contradicts, and only an unusual number of vertebrae would change them. Doubtful: evidence contradicts, or is missing.
"""
CERTAINTIES: Final[tuple[Certainty, ...]] = get_args(Certainty)


def certainty_of(known: Mapping[str, Any] | None) -> Certainty | None:
    """Return the certainty in a numbering's report, or in a record that copied it.

    Args:
        known: The report or record; None or empty if there is none. One from before there were three answers has only
            ``confident``.

    Returns:
        None if nothing is known: for the iterative method, or for a reader's own label.
    """
    for certainty in CERTAINTIES:
        if known and known.get("certainty") == certainty:
            return certainty
    confident = known.get("confident") if known else None
    return None if confident is None else "certain" if confident else "doubtful"


def is_doubtful(known: Mapping[str, Any] | None) -> bool:
    """Return whether the names are doubtful and need a warning; False if nothing is known."""
    return certainty_of(known) == "doubtful"


def proves_nothing(known: Mapping[str, Any] | None) -> bool:
    """Return whether names are too uncertain to be used for other scans; False if nothing is known."""
    return certainty_of(known) in ("counted", "doubtful")
