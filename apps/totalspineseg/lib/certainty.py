"""Whether levels are certain, as reports and records say it."""

from collections.abc import Mapping
from typing import Any


def is_doubtful(known: Mapping[str, Any] | None) -> bool:
    """Whether a numbering abstained: its levels are neither knowledge for other scans nor shown without a word.

    Args:
        known: A numbering's report, or a record that took ``confident`` over from one; None or empty where there is
            none.

    Returns:
        False, too, where nothing is known about it: by the iterative method, or of a reader's own label.
    """
    return known is not None and known.get("confident") is False
