"""The three answers to "are these names right?", as reports and records give them."""

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

Certainty = Literal["certain", "counted", "doubtful"]
"""certain: what is in view identifies the names. counted: up from the sacrum or down from C2; nothing contradicts, and
only another number of vertebrae than usual would change the names. doubtful: evidence contradicts, or is missing."""
CERTAINTIES: Final[tuple[Certainty, ...]] = get_args(Certainty)


def certainty_of(known: Mapping[str, Any] | None) -> Certainty | None:
    """The answer of a numbering's report, or of a record that took it over.

    Args:
        known: The report or record; None or empty where there is none. One written before there were three answers
            says ``confident`` alone.

    Returns:
        None where nothing is known: by the iterative method, or of a reader's own label.
    """
    for certainty in CERTAINTIES:
        if known and known.get("certainty") == certainty:
            return certainty
    confident = known.get("confident") if known else None
    return None if confident is None else "certain" if confident else "doubtful"


def is_doubtful(known: Mapping[str, Any] | None) -> bool:
    """Whether the names are doubtful: to be shown with a word of warning; False where nothing is known."""
    return certainty_of(known) == "doubtful"


def proves_nothing(known: Mapping[str, Any] | None) -> bool:
    """Whether names are no knowledge for other scans; False where nothing is known of them."""
    return certainty_of(known) in ("counted", "doubtful")
