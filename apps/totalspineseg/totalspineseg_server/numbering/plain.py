"""Make pieces of vertebrae that the step-2 network segmented without an odd/even class."""

from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import Kind, Step2
from totalspineseg_server.transforms.canal import Ruler
from totalspineseg_server.transforms.components import Labels
from totalspineseg_server.transforms.piece_voxels import find_voxels
from totalspineseg_server.transforms.pieces import Piece, Pieces, describe

MIN_BODY_MM3: Final = 600.0
"""Smallest volume in front of the canal that is a body; less is a remnant at the border of other vertebrae (a small C3
has 2000 mm3)."""


def with_plain_vertebrae(pieces: Pieces, raw: Labels, ruler: Ruler) -> Pieces:
    """Add every component of the class without odd/even that has a body and belongs to no vertebra.

    ``find_pieces`` gives voxels of that class to the vertebra around them, as TotalSpineSeg does. A whole vertebra of
    this class does not lie in another vertebra and would be lost.

    Args:
        pieces: From ``find_pieces``, step 2.
        raw: uint8 (X, Y, Z) RAS, step-2 classes. Not modified.
        ruler: Canal of ``raw``.

    Returns:
        The pieces, superior to inferior; the same object if there is none to add.
    """
    if pieces.vertebra_map is None:
        return pieces
    free = (raw == Step2.VERTEBRA.value) & (pieces.vertebra_map == 0)
    flat = np.flatnonzero(free)
    in_front = ruler.in_front(np.stack(np.unravel_index(flat, raw.shape), axis=1))
    if np.count_nonzero(in_front) * float(np.prod(ruler.spacing_mm)) < MIN_BODY_MM3:
        return pieces
    voxels = find_voxels(free)
    found = []
    for k in range(voxels.count):
        xyz = np.stack(np.unravel_index(voxels.flat[voxels.owner == k], raw.shape), axis=1)
        piece = describe(Kind.VERTEBRA, xyz, raw, ruler)
        if piece.body_voxels * float(np.prod(ruler.spacing_mm)) >= MIN_BODY_MM3:
            found.append((piece, xyz))
    if not found:
        return pieces
    everything: list[tuple[Piece, npt.NDArray[np.intp] | None]] = [
        *((piece, None) for piece in pieces.vertebrae),
        *found,
    ]
    order = sorted(range(len(everything)), key=lambda k: (-everything[k][0].z_order, -everything[k][0].centroid_vox[2]))
    rank = np.zeros(len(everything) + 1, dtype=np.int32)
    rank[np.array(order) + 1] = np.arange(1, len(everything) + 1)
    numbered = rank[pieces.vertebra_map]
    for k, (_, mine) in enumerate(everything):
        if mine is not None:
            numbered[mine[:, 0], mine[:, 1], mine[:, 2]] = rank[k + 1]
    return replace(pieces, vertebra_map=numbered, vertebrae=tuple(everything[k][0] for k in order))
