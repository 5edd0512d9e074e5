"""Draw implants: screws through the pedicles, rods between them, plates in front of the neck."""

import itertools

import numpy as np
from numpy.typing import NDArray

from totalspineseg_server.synthesis.column import BentColumn, Vertebra
from totalspineseg_server.synthesis.raster import WORLD, Raster
from totalspineseg_server.synthesis.shapes import canal_center, capsule
from totalspineseg_server.synthesis.tissues import Tissue

Tissues = NDArray[np.uint8]
Point = NDArray[np.float64]

IMPLANT_ODDS = 0.05
"""Share of columns with metal in them."""
_LEVELS = (2, 5)
"""Smallest and largest number of vertebrae that are held together."""
_SCREW_MM, _ROD_MM = (3.5, 6.0), (3.5, 5.5)
"""Radius of the void around a screw and a rod: two to three times that of the metal, as on spin echoes."""
_CEMENT_ODDS = 0.02
"""Share of columns with a vertebra that is filled with cement."""


def draw_implants(rng: np.random.Generator, tissues: Tissues, column: BentColumn, raster: Raster) -> None:
    """Draw implants into a few columns; labels do not change, because a vertebra with a screw is still a vertebra.

    Args:
        rng: Source of randomness.
        tissues: Tissue numbers, (X, Y, Z). Modified.
        column: The bent column.
        raster: Grid of the tissues.
    """
    metal, cement = rng.random() < IMPLANT_ODDS, rng.random() < _CEMENT_ODDS
    if metal:
        count = int(rng.integers(_LEVELS[0], _LEVELS[1] + 1))
        first = int(rng.integers(2, len(column.vertebrae) - count + 1))
        held = column.vertebrae[first : first + count]
        if held[-1].region == "cervical":
            fronts = [v.frame.point(0, v.size.depth / 2 + 2, 0) for v in held]
            _chain(tissues, raster, fronts, float(rng.uniform(*_ROD_MM)))
        else:
            _screws(rng, tissues, held, raster)
    if cement:
        vertebra = column.vertebrae[int(rng.integers(9, len(column.vertebrae)))]
        offsets = rng.uniform((2, -3, -4), (10, 8, 4), (2, 3)) * ((1, 1, 1), (-1, 1, 1))
        ends = [vertebra.frame.point(*map(float, at)) for at in offsets]
        _chain(tissues, raster, ends, float(rng.uniform(3, 7)))


def _screws(rng: np.random.Generator, tissues: Tissues, held: tuple[Vertebra, ...], raster: Raster) -> None:
    """Draw two screws per vertebra and a rod on either side."""
    screw, rod = float(rng.uniform(*_SCREW_MM)), float(rng.uniform(*_ROD_MM))
    for side in (-1, 1):
        heads = []
        for vertebra in held:
            size = vertebra.size
            beside = size.canal_width / 2 + size.pedicle_width / 2
            height = 0.2 * size.height
            head = vertebra.frame.point(side * (beside + 5), canal_center(vertebra) - size.canal_depth / 2 - 12, height)
            tip = vertebra.frame.point(side * 0.5 * beside, 0.2 * size.depth, height)
            _chain(tissues, raster, [head, tip], screw)
            heads.append(head)
        _chain(tissues, raster, heads, rod)


def _chain(tissues: Tissues, raster: Raster, points: list[Point], radius: float) -> None:
    for start, end in itertools.pairwise(points):
        box = raster.around(WORLD, start, end, radius)
        if box is not None:
            ends = [(float(p[0]), float(p[1]), float(p[2])) for p in (start, end)]
            tissues[box][capsule(raster.local(WORLD, box), ends[0], ends[1], radius)] = Tissue.IMPLANT
