"""Check a submitted label. Findings are shown to its author and stored with it; a label is never refused for them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from totalspineseg_server.anatomy import BACKGROUND, NAME_OF, T13, UNREVIEWED_NAME
from totalspineseg_server.certainty import certainty_of, is_doubtful
from totalspineseg_server.corrections import answers
from totalspineseg_server.corrections.attribution import Corrected
from totalspineseg_server.corrections.correction_store import Correction, Received
from totalspineseg_server.corrections.displayed_corrections import UNCONFIRMED
from totalspineseg_server.corrections.renames import Compared
from totalspineseg_server.corrections.submission import ACCEPTED_MARK, Mapped
from totalspineseg_server.geometry import Grid, LabelArray, Volume, to_ras
from totalspineseg_server.numbering.findings import Finding
from totalspineseg_server.numbering.linter import lint
from totalspineseg_server.plausible import missing_kinds, without_regions
from totalspineseg_server.spellings import DOUBT_MARK, with_mark

INCOMPLETE: Final = "incomplete"
"""Kind of the finding for a label that shows only some of the structures in view."""


def check(codes: LabelArray, grid: Grid) -> tuple[Mapping[str, Any], ...]:
    """Check a label map of any orientation with the linter, and for structures that are missing altogether.

    Args:
        codes: (X, Y, Z) codes on ``grid``, ``UNREVIEWED`` where nobody checked. Not modified.
        grid: Grid of the voxels.

    Returns:
        Kind, name, message, voxels and ``point_mm`` (RAS, or None) of each finding; empty for a sound map.
    """
    ras = to_ras(Volume(without_regions(codes), grid.affine))
    findings = (*_incomplete(codes), *lint(np.ascontiguousarray(ras.data), ras.spacing))
    return tuple(finding.as_dict(ras.affine) for finding in findings)


def _incomplete(codes: LabelArray) -> tuple[Finding, ...]:
    """Return a finding if a label lacks whole kinds of structures, for example because the client requested only
    some."""
    missing = missing_kinds(codes)
    if not missing:
        return ()
    return (Finding(INCOMPLETE, BACKGROUND, answers.incomplete(missing, UNREVIEWED_NAME)),)


def finished_meanwhile(in_force: Sequence[Correction], received: Received) -> tuple[Mapping[str, Any], ...]:
    """Return a finding if somebody else submitted the same kind of label after the corrected prediction was made.

    Most clients use the name with which their program was installed. Therefore a sender with the same name counts as
    somebody else, unless both labels correct the same prediction, because then one reader is submitting again.

    Args:
        in_force: Accepted corrections of the image that count and are shown under the same tag, oldest first.
        received: The submission. Not modified.

    Returns:
        One finding or none; none if the corrected prediction is not known.
    """
    predicted, sender = received.prediction, received.sender
    if predicted is None:
        return ()
    for other in reversed(in_force):
        same_name = (other.user, other.client) == (sender.user, sender.client)
        if other.id > predicted.id and not (same_name and (other.prediction or {}).get("id") == predicted.id):
            message = answers.somebody_else(other.reader, other.received)
            return (Finding("finished_meanwhile", BACKGROUND, message).as_dict(np.eye(4)),)
    return ()


UNCHANGED: Final = "unchanged"
"""Kind of the finding on a doubtful prediction that was submitted unchanged."""
RENAMED: Final = "renamed"
"""Kind of the finding on a rename that leaves a gap or adds a T13 although the levels were certain."""
GAP: Final = "gap"
"""Kind of the linter's finding on a missing level."""


def beside_prediction(
    corrected: Corrected | None, mapped: Mapped, lint: Sequence[Mapping[str, Any]]
) -> tuple[Mapping[str, Any], ...]:
    """Compare a submission with its prediction, and return a finding if the reader should look again.

    Args:
        corrected: The prediction; None if it is not known.
        mapped: The submission in codes, after a rename was applied to the other levels. Not modified.
        lint: The linter's findings in the submission.

    Returns:
        One finding, or none.
    """
    if mapped.unconfirmed:
        names = [with_mark(NAME_OF[code]) for code in mapped.unconfirmed]
        message = answers.unconfirmed(names, DOUBT_MARK, ACCEPTED_MARK)
        return (Finding(UNCONFIRMED, BACKGROUND, message).as_dict(np.eye(4)),)
    if corrected is None or corrected.compared is None:
        return ()
    numbering, compared = corrected.prediction.numbering or {}, corrected.compared
    if is_doubtful(numbering) and is_unchanged(compared, mapped):
        return (Finding(UNCHANGED, BACKGROUND, answers.unchanged(_chance(numbering))).as_dict(np.eye(4)),)
    if compared.renamed and certainty_of(numbering) == "certain":
        before = {int(code) for code in np.unique(compared.maps.output.labels)}
        gaps = _gaps(lint) - _gaps(numbering.get("findings"))
        odd = [answers.is_missing(name) for code, name in NAME_OF.items() if code in gaps]
        odd += [answers.THERE_IS_A_T13] if T13 in mapped.present and T13 not in before else []
        if odd:
            (_, change) = compared.renamed[0]
            message = answers.odd_rename(NAME_OF[change.old], NAME_OF[change.new], _chance(numbering), odd)
            return (Finding(RENAMED, change.new, message).as_dict(np.eye(4)),)
    return ()


def _gaps(findings: object) -> set[Any]:
    """Return the codes of missing levels. Findings in a record may have any form, because another version may have
    written it."""
    listed = findings if isinstance(findings, Sequence) else ()
    known = [finding for finding in listed if isinstance(finding, Mapping)]
    return {finding.get("code") for finding in known if finding.get("kind") == GAP}


def is_unchanged(compared: Compared, mapped: Mapped) -> bool:
    """Return whether each submitted structure is exactly as predicted."""
    predicted = np.where(np.isin(compared.predicted, mapped.present), compared.predicted, BACKGROUND)
    return bool((predicted == mapped.codes).all())


def _chance(numbering: Mapping[str, Any]) -> str:
    probability = numbering.get("probability")
    return f" (probability {probability:.2f})" if isinstance(probability, float) else ""
