"""Check a submitted label. Findings are shown to its author and stored with it; they are no reason to refuse it."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from lib.anatomy import BACKGROUND, UNREVIEWED_NAME
from lib.corrections import answers
from lib.corrections.unreviewed import without_regions
from lib.geometry import Grid, LabelArray, Volume, to_ras
from lib.numbering.findings import Finding
from lib.numbering.lint import lint
from lib.plausible import missing_kinds

INCOMPLETE: Final = "incomplete"
"""Kind of the finding on a label that shows only a part of what is in view."""


def check(codes: LabelArray, grid: Grid) -> tuple[Mapping[str, Any], ...]:
    """Check a label map of any orientation with the linter, and for structures that are missing altogether.

    Args:
        codes: (X, Y, Z) codes on ``grid``, ``UNREVIEWED`` where nobody checked. Not modified.
        grid: Where the voxels lie.

    Returns:
        Kind, name, message, voxels and ``point_mm`` (RAS, or None) of each finding; empty for a sound map.
    """
    ras = to_ras(Volume(without_regions(codes), grid.affine))
    findings = (*_incomplete(codes), *lint(np.ascontiguousarray(ras.data), ras.spacing))
    return tuple(finding.as_dict(ras.affine) for finding in findings)


def _incomplete(codes: LabelArray) -> tuple[Finding, ...]:
    """Return a finding if a label lacks whole kinds of structures, as a client may have asked for some only."""
    missing = missing_kinds(codes)
    if not missing:
        return ()
    return (Finding(INCOMPLETE, BACKGROUND, answers.incomplete(missing, UNREVIEWED_NAME)),)
