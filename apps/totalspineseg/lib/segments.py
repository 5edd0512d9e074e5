"""A label file as an annotator's program wrote it: layers of voxels and the segments it names."""

from dataclasses import dataclass
from typing import Final

from lib.geometry import Grid, LabelArray, Volume, on_grid

MAX_SEGMENTS: Final = 255
"""More segments than a uint8 map can hold are not a spine."""


@dataclass(frozen=True)
class Segment:
    """One named structure of a submission.

    Attributes:
        name: As the client wrote it.
        value: Voxel value in its layer.
        layer: Index into ``Submission.layers``.
    """

    name: str
    value: int
    layer: int = 0


@dataclass(frozen=True)
class Submission:
    """A label file, read.

    Attributes:
        layers: One (X, Y, Z) uint8 map per layer; several when segments overlap.
        grid: Where the voxels lie.
        segments: Which name each value stands for.
    """

    layers: tuple[LabelArray, ...]
    grid: Grid
    segments: tuple[Segment, ...]

    def on(self, image: Grid) -> "Submission":
        """Return the same submission in the index order of its image.

        Args:
            image: Grid of the image.

        Raises:
            GridError: The label lies on other voxels.
        """
        layers = tuple(on_grid(Volume(layer, self.grid.affine), image).data for layer in self.layers)
        return Submission(layers, image, self.segments)
