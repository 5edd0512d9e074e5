"""Name the levels of a network's map by TotalSpineSeg's own rule, for tests."""

from typing import Any

import numpy as np
import numpy.typing as npt

from totalspineseg_server.transforms.components import Labels
from totalspineseg_server.transforms.labeling import name_iteratively, paint
from totalspineseg_server.transforms.pieces import Step, find_pieces


def label_iteratively(raw: Labels, step: Step, *, localizer: npt.NDArray[np.integer[Any]] | None = None) -> Labels:
    """Find the pieces of a map, name them, and write the names into a new map."""
    pieces = find_pieces(raw, step)
    return paint(pieces, raw, name_iteratively(pieces, localizer=localizer), step)
