"""Name the structures of a label file: segments as readers' programs name them, and maps that are sent to clients.

In these maps the ids are 1..N in the same order for every model, because clients give the k-th published name to voxel
value k. Step 1 does not distinguish vertebrae: it publishes "vertebrae" in place of the sacrum, so that a corrected
step-1 label is never mistaken for a finished one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from totalspineseg_server.anatomy import BACKGROUND, NAME_OF, SACRUM, WIRE_ID, WIRE_LABELS
from totalspineseg_server.errors import LabelError
from totalspineseg_server.geometry import Grid, LabelArray, Volume, on_grid
from totalspineseg_server.spellings import without_mark

MAX_SEGMENTS: Final = 255
"""Largest number of segments: as many as fit into a uint8 map. No spine has more."""


@dataclass(frozen=True)
class Segment:
    """One named structure of a submission.

    Attributes:
        name: Name that the client sent.
        value: Voxel value in its layer.
        layer: Index into ``Submission.layers``.
    """

    name: str
    value: int
    layer: int = 0


@dataclass(frozen=True)
class Submission:
    """The content of a label file.

    Attributes:
        layers: (X, Y, Z) uint8 maps; there are several if segments overlap.
        grid: Grid of the voxels.
        segments: Name of each value.
    """

    layers: tuple[LabelArray, ...]
    grid: Grid
    segments: tuple[Segment, ...]

    def on(self, image: Grid) -> "Submission":
        """Return the same submission in the index order of its image.

        Args:
            image: Grid of the image.

        Raises:
            GridError: The label does not lie on the voxels of the image.
        """
        layers = tuple(on_grid(Volume(layer, self.grid.affine), image).data for layer in self.layers)
        return Submission(layers, image, self.segments)


VERTEBRAE_NAME: Final = "vertebrae"
"""Name of the structure that contains all vertebrae and the sacrum in step 1."""
REVIEW_PREFIX: Final = "review"
"""Beginning of the names of segments that only mark places for a reader to look at."""
STEP1_WIRE_LABELS: Final[Mapping[str, int]] = MappingProxyType(
    {VERTEBRAE_NAME if name == NAME_OF[SACRUM] else name: wire_id for name, wire_id in WIRE_LABELS.items()}
)
"""Name -> wire id of step-1 label maps."""


def is_vertebrae(name: str) -> bool:
    """Return whether a segment's name is that of all vertebrae in one piece, which makes its map a step-1 map."""
    return name.strip().casefold() == VERTEBRAE_NAME


def _table(pairs: Mapping[int, int]) -> LabelArray:
    table = np.zeros(np.iinfo(np.uint8).max + 1, dtype=np.uint8)
    for source, target in pairs.items():
        table[source] = target
    return table


_TO_WIRE = _table(WIRE_ID)
_FROM_WIRE = _table({wire_id: code for code, wire_id in WIRE_ID.items()})


def to_wire(codes: LabelArray) -> LabelArray:
    """Convert a map of codes to wire ids.

    Args:
        codes: (X, Y, Z) uint8. Not modified.

    Returns:
        uint8 of the same shape; all 0 stays all 0.

    Raises:
        LabelError: A value is not a code.
    """
    wire: LabelArray = _TO_WIRE[codes]
    _require_known(codes, wire, "codes of the label table")
    return wire


def from_wire(wire: LabelArray) -> LabelArray:
    """Convert a map of wire ids to codes; see ``to_wire``.

    Raises:
        LabelError: A value is not a wire id.
    """
    codes: LabelArray = _FROM_WIRE[wire]
    _require_known(wire, codes, f"ids 0..{len(WIRE_ID)}")
    return codes


def from_names(values: LabelArray, names: Mapping[str, int]) -> LabelArray:
    """Convert a map with named values, such as that of a reply, to codes.

    Args:
        values: (X, Y, Z) uint8. Not modified.
        names: Published name, perhaps with the mark of doubt -> value, as ``label_names`` of a reply.

    Raises:
        LabelError: A value has no name.
    """
    published = {**WIRE_LABELS, VERTEBRAE_NAME: STEP1_WIRE_LABELS[VERTEBRAE_NAME]}
    wire: LabelArray = _table({value: published[without_mark(name)] for name, value in names.items()})[values]
    _require_known(values, wire, f"the values of {', '.join(names)}")
    return from_wire(wire)


def _require_known(source: LabelArray, mapped: LabelArray, expected: str) -> None:
    lost = (source != BACKGROUND) & (mapped == BACKGROUND)
    if lost.any():
        values = [int(value) for value in np.unique(source[lost])]
        raise LabelError(f"expected a label map with {expected}, got the values {values!r}")
