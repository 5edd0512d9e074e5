"""Draw the long ligaments of the column: in front of the bodies, and between and behind the spinous processes."""

import itertools

import numpy as np
from numpy.typing import NDArray

from totalspineseg_server.synthesis.column import BentColumn, Vertebra
from totalspineseg_server.synthesis.raster import WORLD, Raster
from totalspineseg_server.synthesis.shapes import capsule, spinous_ends
from totalspineseg_server.synthesis.tissues import Tissue

Tissues = NDArray[np.uint8]
Point = tuple[float, float, float]

_FRONT_RADIUS_MM, _TIP_RADIUS_MM, _SHEET_STEP_MM = 2.5, 2.5, 2.5
_FAT_ODDS, _FAT_RADIUS_MM, _SHEET_RADIUS_MM = 0.7, 3.2, 1.8
"""Odds of fat between the spinous processes, its half thickness, and that of the ligament in its place."""


def draw_ligaments(rng: np.random.Generator, out: Tissues, column: BentColumn, raster: Raster) -> None:
    """Paint the ligaments; bone and discs are painted over them later.

    Args:
        rng: Source of randomness.
        out: Tissue numbers, (X, Y, Z). Modified.
        column: The bent column.
        raster: Grid of the tissues.
    """
    fat = rng.random() < _FAT_ODDS
    between, radius = (Tissue.FAT, _FAT_RADIUS_MM) if fat else (Tissue.LIGAMENT, _SHEET_RADIUS_MM)
    for upper, lower in itertools.pairwise(column.vertebrae[1:]):
        _cord(out, raster, _front(upper), _front(lower), _FRONT_RADIUS_MM, Tissue.LIGAMENT)
        (above, above_tip), (below, below_tip) = ([_world(v, p) for p in spinous_ends(v)] for v in (upper, lower))
        for share in np.arange(0, 1, _SHEET_STEP_MM / np.linalg.norm(above_tip - above)):
            ends = above + share * (above_tip - above), below + share * (below_tip - below)
            _cord(out, raster, *ends, radius, between)
        _cord(out, raster, above_tip, below_tip, _TIP_RADIUS_MM, Tissue.LIGAMENT)


def _world(vertebra: Vertebra, point: Point) -> NDArray[np.float64]:
    return np.asarray(vertebra.frame.origin + vertebra.frame.axes @ np.asarray(point))


def _front(vertebra: Vertebra) -> NDArray[np.float64]:
    return _world(vertebra, (0.0, vertebra.size.depth / 2, 0.0))


def _cord(
    out: Tissues, raster: Raster, start: NDArray[np.float64], end: NDArray[np.float64], radius: float, tissue: Tissue
) -> None:
    box = raster.around(WORLD, start, end, radius)
    if box is None:
        return
    ends = [(float(p[0]), float(p[1]), float(p[2])) for p in (start, end)]
    out[box][capsule(raster.local(WORLD, box), ends[0], ends[1], radius)] = tissue
