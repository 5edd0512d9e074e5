"""What is odd about a submitted label: told to its author and kept with it, never a reason to refuse it."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from lib.anatomy import BACKGROUND, UNREVIEWED_NAME
from lib.corrections.unreviewed import without_regions
from lib.geometry import Grid, LabelArray, Volume, to_ras
from lib.numbering.findings import Finding
from lib.numbering.lint import lint
from lib.plausible import missing_kinds

INCOMPLETE: Final = "incomplete"
"""Kind of the finding on a label that shows a part of what is in view."""


def check(codes: LabelArray, grid: Grid) -> tuple[Mapping[str, Any], ...]:
    """What is odd about a label map of any orientation: the linter's findings, and whether a part is missing.

    Args:
        codes: (X, Y, Z) codes on ``grid``, ``UNREVIEWED`` where nobody has looked. Not modified.
        grid: Where the voxels lie.

    Returns:
        Kind, name, message, voxels and ``point_mm`` (RAS, or None) of each; none for a sound map.
    """
    ras = to_ras(Volume(without_regions(codes), grid.affine))
    findings = (*_incomplete(codes), *lint(np.ascontiguousarray(ras.data), ras.spacing))
    return tuple(finding.as_dict(ras.affine) for finding in findings)


def _incomplete(codes: LabelArray) -> tuple[Finding, ...]:
    """A map that shows a part of what is in view, as clients get that ask for some structures alone."""
    missing = missing_kinds(codes)
    if not missing:
        return ()
    message = (
        f"There is no {' and no '.join(missing)} in this label, so it is used neither for training nor for comparing "
        f"models. Submit it with all that is in view, or with a segment {UNREVIEWED_NAME!r} where nobody looked."
    )
    return (Finding(INCOMPLETE, BACKGROUND, message),)
