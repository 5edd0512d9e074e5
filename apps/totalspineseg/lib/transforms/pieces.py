"""The connected pieces of a step's label map, superior to inferior, before they get names."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lib.anatomy import Kind

Box = tuple[slice, slice, slice]
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Piece:
    """One disc, one vertebra or one sacrum as the network drew it.

    Attributes:
        kind: ``DISC``, ``VERTEBRA`` or ``SACRUM``.
        voxels: Number of voxels; remnants assigned to the piece count.
        centroid_vox: Center of mass of all voxels (x, y, z), voxel indices of the map.
        body_voxels: Voxels anterior to the canal; of a disc, all of them.
        body_centroid_vox: Center of mass of those; None where the piece has no body in view.
        z_order: Height the order is decided by (voxel index, rising to superior): z of the centerline
            voxel nearest to the body, or to the whole piece where no body is in view.
        box: Smallest box that holds the piece.
        class_voxels: Network class -> voxels of it in this piece (landmark classes of a disc,
            odd / even / remnant of a vertebra).
        parts: Connected components joined into this piece.
    """

    kind: Kind
    voxels: int
    centroid_vox: Point
    body_voxels: int
    body_centroid_vox: Point | None
    z_order: float
    box: Box
    class_voxels: Mapping[int, int]
    parts: int = 1


@dataclass(frozen=True)
class Pieces:
    """All pieces of one label map, each list superior to inferior.

    Attributes:
        shape: Shape of the map.
        disc_map: int32; value k is ``discs[k - 1]``, 0 is none.
        discs: The discs.
        vertebra_map: int32; value k is ``vertebrae[k - 1]``, 0 is none. None in step 1, whose network
            does not separate vertebrae.
        vertebrae: The vertebrae and the sacrum (``Piece.kind`` tells which); empty in step 1.
    """

    shape: tuple[int, int, int]
    disc_map: npt.NDArray[np.int32]
    discs: tuple[Piece, ...]
    vertebra_map: npt.NDArray[np.int32] | None
    vertebrae: tuple[Piece, ...]
