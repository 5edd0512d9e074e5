"""The description of a piece from its voxels, measured as in ``find_pieces``."""

from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from lib.anatomy import Kind
from lib.numbering.course import Ruler
from lib.transforms.components import Box, Labels
from lib.transforms.pieces import MIN_BODY_VOXELS, Piece


def describe(kind: Kind, xyz: npt.NDArray[np.intp], raw: Labels, ruler: Ruler) -> Piece:
    """Return the piece that some voxels form.

    Args:
        kind: Disc, vertebra or sacrum.
        xyz: (n, 3) voxel indices, at least one. Not modified.
        raw: uint8 (X, Y, Z) RAS, network classes. Not modified.
        ruler: Canal of ``raw``.
    """
    center = xyz.mean(axis=0)
    body = xyz if kind is Kind.DISC else xyz[ruler.in_front(xyz)]
    has_body = kind is Kind.DISC or len(body) >= MIN_BODY_VOXELS
    middle = body.mean(axis=0) if has_body else center
    points = ruler.extent.points
    height = points[((points - middle) ** 2).sum(axis=1).argmin(), 2] if len(points) else middle[2]
    counts = np.bincount(raw[xyz[:, 0], xyz[:, 1], xyz[:, 2]])
    low, high = xyz.min(axis=0).tolist(), (xyz.max(axis=0) + 1).tolist()
    box: Box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    return Piece(
        kind=kind,
        voxels=len(xyz),
        centroid_vox=(float(center[0]), float(center[1]), float(center[2])),
        body_voxels=len(body) if has_body else 0,
        body_centroid_vox=(float(middle[0]), float(middle[1]), float(middle[2])) if has_body else None,
        z_order=float(height),
        box=box,
        class_voxels=MappingProxyType({int(c): int(counts[c]) for c in np.flatnonzero(counts)}),
    )
