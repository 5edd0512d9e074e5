"""Hold the content of a reader's label file: layers of voxels, and named segments."""

from dataclasses import dataclass
from typing import Final

from totalspineseg_server.geometry import Grid, LabelArray, Volume, on_grid

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
