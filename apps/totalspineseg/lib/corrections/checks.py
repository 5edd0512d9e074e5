"""What is odd about a submitted label: told to its author and kept with it, never a reason to refuse it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lib.geometry import Grid, LabelArray, Volume, to_ras
from lib.numbering.lint import lint


def check(codes: LabelArray, grid: Grid) -> tuple[Mapping[str, Any], ...]:
    """The linter's findings on a label map of any orientation.

    Args:
        codes: (X, Y, Z) codes on ``grid``. Not modified.
        grid: Where the voxels lie.

    Returns:
        Kind, name, message, voxels and ``point_mm`` (RAS, or None) of each; none for a sound map.
    """
    ras = to_ras(Volume(codes, grid.affine))
    return tuple(finding.as_dict(ras.affine) for finding in lint(np.ascontiguousarray(ras.data), ras.spacing))
