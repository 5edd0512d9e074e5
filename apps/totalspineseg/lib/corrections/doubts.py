"""What is odd about a submission beside the prediction it corrects: doubtful levels, and renames that make some."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from lib.anatomy import BACKGROUND, NAME_OF, T13
from lib.certainty import certainty_of, is_doubtful
from lib.corrections.attribution import Corrected
from lib.corrections.names import Mapped
from lib.corrections.renames import Compared
from lib.numbering.findings import Finding

UNCHANGED: Final = "unchanged"
"""Kind of the finding on a doubtful prediction that was submitted as it was drawn."""
RENAMED: Final = "renamed"
"""Kind of the finding on a rename that leaves a gap or makes a T13 where the levels were certain."""
GAP: Final = "gap"
"""Kind of the linter's finding on a missing level."""


def beside_prediction(
    corrected: Corrected | None, mapped: Mapped, lint: Sequence[Mapping[str, Any]]
) -> tuple[Mapping[str, Any], ...]:
    """Return what a reader should look at again, as far as the prediction tells.

    Args:
        corrected: The prediction; None where it is not known.
        mapped: The submission in codes, after the levels followed a rename. Not modified.
        lint: What the linter found in the submission.

    Returns:
        One finding, or none.
    """
    if corrected is None or corrected.compared is None:
        return ()
    numbering, compared = corrected.prediction.numbering or {}, corrected.compared
    if is_doubtful(numbering) and is_unchanged(compared, mapped):
        message = (
            f"You changed nothing, although the names of this prediction are doubtful{_chance(numbering)}. Check them. "
            "If they are right, there is nothing else to do."
        )
        return (Finding(UNCHANGED, BACKGROUND, message).as_dict(np.eye(4)),)
    if compared.renamed and certainty_of(numbering) == "certain":
        before = {int(code) for code in np.unique(compared.kept.drawn.labels)}
        gaps = _gaps(lint) - _gaps(numbering.get("findings"))
        odd = [f"{name} is missing" for code, name in NAME_OF.items() if code in gaps]
        odd += ["there is a T13"] if T13 in mapped.present and T13 not in before else []
        if odd:
            (_, change) = compared.renamed[0]
            message = (
                f"You renamed {NAME_OF[change.old]} to {NAME_OF[change.new]}, although the names were certain"
                f"{_chance(numbering)}. Now {' and '.join(odd)}. If that is not so, correct the name and submit "
                "again."
            )
            return (Finding(RENAMED, change.new, message).as_dict(np.eye(4)),)
    return ()


def _gaps(findings: object) -> set[Any]:
    """Return the codes of missing levels; of a record, findings may be whatever another version wrote."""
    listed = findings if isinstance(findings, Sequence) else ()
    known = [finding for finding in listed if isinstance(finding, Mapping)]
    return {finding.get("code") for finding in known if finding.get("kind") == GAP}


def is_unchanged(compared: Compared, mapped: Mapped) -> bool:
    """Return whether each submitted structure lies just where the prediction has it."""
    drawn = np.where(np.isin(compared.drawn, mapped.present), compared.drawn, BACKGROUND)
    return bool((drawn == mapped.codes).all())


def _chance(numbering: Mapping[str, Any]) -> str:
    probability = numbering.get("probability")
    return f" (probability {probability:.2f})" if isinstance(probability, float) else ""
