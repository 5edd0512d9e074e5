"""Draw a random spine as a label map, which the two networks would see as classes, and a map of tissues."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from totalspineseg_server import anatomy
from totalspineseg_server.synthesis.canal_shape import draw_canal, trace_canal
from totalspineseg_server.synthesis.column import BentColumn, bend_column
from totalspineseg_server.synthesis.shapes import Raster
from totalspineseg_server.synthesis.surroundings import draw_surroundings
from totalspineseg_server.synthesis.vertebrae import (
    draw_cortical_shell,
    draw_dens,
    draw_disc,
    draw_implants,
    draw_sacrum,
    draw_vertebra,
)

Codes = NDArray[np.uint8]


class Field(Enum):
    """The part of the column that the scan shows."""

    WHOLE = "whole"
    CERVICAL = "cervical"
    CERVICOTHORACIC = "cervicothoracic"
    THORACIC = "thoracic"
    THORACOLUMBAR = "thoracolumbar"
    LUMBAR = "lumbar"
    LOWER_LUMBAR = "lower lumbar"


@dataclass(frozen=True)
class SpineOptions:
    """Options of a synthetic spine; None leaves the choice to the random generator.

    Attributes:
        field: Part of the column in view.
        thoracic: Number of thoracic vertebrae, 11 to 13.
        lumbar: Number of lumbar vertebrae, 4 to 6.
        spacing_mm: Voxel size along x, y, z.
        width_mm: Extent of the scan right to left.
        depth_mm: Extent front to back.
        jitter: Strength of the individual variation; 0 is the average body, 1 a broad population.
    """

    field: Field | None = None
    thoracic: int | None = None
    lumbar: int | None = None
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    width_mm: float | None = None
    depth_mm: float | None = None
    jitter: float = 1.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A spacing or extent is not positive, or the jitter is negative.
        """
        if len(self.spacing_mm) != 3 or min(self.spacing_mm) <= 0:
            raise ValueError(f"expected spacing_mm of three positive lengths, got {self.spacing_mm!r}")
        for name in ("width_mm", "depth_mm"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"expected {name} above 0, or None for a usual one, got {value!r}")
        if self.jitter < 0:
            raise ValueError(f"expected jitter of 0 or more (1 is a broad population), got {self.jitter!r}")


_VARIANT_ODDS = ((11, 0.03), (12, 0.94), (13, 0.03)), ((4, 0.05), (5, 0.89), (6, 0.06))
"""Odds of each thoracic and lumbar count. Anomalies are twice as frequent as in people (7.7 %: Tins and Balain,
Insights Imaging 7(2), 2016, 199-203), so that networks see them."""
_SLAB_ODDS, _SLAB_MM = 0.12, (15.0, 36.0)
"""Share of the scans that show only the middle of the column, and their width: few slices, as in thin volumes."""
_USUAL_COUNT = len(anatomy.column().vertebrae)
_FIELD_LEVELS: Mapping[Field, tuple[tuple[int, int] | None, tuple[int, int] | None]] = {
    Field.WHOLE: (None, None),
    Field.CERVICAL: (None, (8, 11)),
    Field.CERVICOTHORACIC: (None, (11, 15)),
    Field.THORACIC: ((5, 9), (17, 21)),
    Field.THORACOLUMBAR: ((12, 16), (21, 24)),
    Field.LUMBAR: ((16, 19), None),
    Field.LOWER_LUMBAR: ((19, 21), None),
}
"""Field -> range of the first and of the last vertebra in view, by position from C1 = 0; None for the head and the
coccyx."""


@dataclass(frozen=True)
class SyntheticSpine:
    """A random spine.

    Attributes:
        labels: Output codes, uint8 (X, Y, Z), RAS.
        tissues: ``Tissue`` numbers on the same grid.
        affine: Voxel -> RAS mm.
        column: "normal" or the variant ("T11", "L6", ..).
        vertebrae: Codes of the whole column, superior to inferior, in view or not.
        discs: Codes of its discs, superior to inferior.
    """

    labels: Codes
    tissues: Codes
    affine: NDArray[np.float64]
    column: str
    vertebrae: tuple[int, ...]
    discs: tuple[int, ...]


def random_spine(rng: np.random.Generator, options: SpineOptions | None = None) -> SyntheticSpine:
    """Draw a spine, its surroundings and the field of view at random.

    Args:
        rng: Source of all randomness; the same state gives the same spine.
        options: Options; whatever they leave open is random.

    Returns:
        The spine in RAS, with its first voxel at a random place in the scanner.
    """
    options = options or SpineOptions()
    thoracic, lumbar = options.thoracic, options.lumbar
    counts = [int(rng.choice([n for n, _ in odds], p=[p for _, p in odds])) for odds in _VARIANT_ODDS]
    column = bend_column(rng, thoracic or counts[0], lumbar or counts[1], options.jitter)
    raster = _frame_scan(rng, column, options)
    curve = trace_canal(rng, column, raster, options.jitter)
    tissues = draw_surroundings(rng, column, curve, raster, options.jitter)
    labels = np.zeros(raster.shape, np.uint8)
    draw_sacrum(rng.spawn(1)[0], labels, tissues, column, raster)
    for vertebra in column.vertebrae:
        draw_vertebra(rng, labels, tissues, vertebra, raster)
    draw_dens(rng.spawn(1)[0], labels, tissues, column, raster)
    for vertebra in column.vertebrae:
        draw_disc(rng, labels, tissues, vertebra, raster, options.jitter)
    draw_cortical_shell(labels, tissues)
    draw_canal(rng, labels, tissues, curve, raster)
    draw_implants(rng.spawn(1)[0], tissues, column, raster)
    codes = tuple(v.code for v in column.vertebrae)
    discs = tuple(v.disc for v in column.vertebrae if v.disc is not None)
    return SyntheticSpine(labels, tissues, raster.affine, column.name, codes, discs)


def _frame_scan(rng: np.random.Generator, column: BentColumn, options: SpineOptions) -> Raster:
    """Return the grid of the scan around the levels that the field shows."""
    field = options.field or Field(rng.choice([f.value for f in Field]))
    points = np.array([v.frame.origin for v in column.vertebrae])
    tail, head = column.sacrum[-1].frame.origin[2], points[0, 2]
    first, last = _FIELD_LEVELS[field]
    top, bottom = head + rng.uniform(12, 60), tail + rng.uniform(-30, 10 if field is Field.WHOLE else 45)
    if first is not None:
        shift = len(points) - _USUAL_COUNT
        top = points[int(rng.integers(first[0], first[1] + 1)) + shift, 2] + rng.uniform(-12, 12)
    if last is not None:
        lowest = min(int(rng.integers(last[0], last[1] + 1)), len(points) - 1)
        bottom = points[lowest, 2] + rng.uniform(-12, 12)
    seen = points[(points[:, 2] < top) & (points[:, 2] > bottom)]
    if bottom < 0:
        seen = np.concatenate([seen, [s.frame.origin for s in column.sacrum if s.frame.origin[2] > bottom]])
    middle = (seen.min(0) + seen.max(0)) / 2
    extent = np.ptp(seen, axis=0)
    slab = rng.spawn(1)[0]
    width = extent[0] + rng.uniform(50, 120)
    if slab.random() < _SLAB_ODDS:
        width = slab.uniform(*_SLAB_MM)
    width = options.width_mm or width
    depth = options.depth_mm or extent[1] + rng.uniform(120, 210)
    center = middle + rng.uniform(-1, 1, 3) * (0.06 * width, 0.08 * depth, 0)
    center[1] += rng.uniform(-0.1, 0.12) * depth
    spacing = np.asarray(options.spacing_mm)
    shape = np.maximum(np.round(np.array([width, depth, top - bottom]) / spacing).astype(int), 8)
    origin = np.array([center[0], center[1], (top + bottom) / 2]) - spacing * (shape - 1) / 2
    return Raster(tuple(int(n) for n in shape), options.spacing_mm, tuple(float(v) for v in origin))  # type: ignore[arg-type]


def _look_up(labels: NDArray[np.integer[Any]], table: Mapping[int, int]) -> Codes:
    lut = np.zeros(256, np.uint8)
    for code, value in table.items():
        lut[code] = value
    return np.asarray(lut[labels])


def step1_classes(labels: NDArray[np.integer[Any]]) -> Codes:
    """Return the perfect step-1 network result for a label map.

    Args:
        labels: Output codes (X, Y, Z). Not modified.

    Returns:
        Step-1 classes, uint8 (X, Y, Z); all 0 for an empty map.
    """
    return _look_up(labels, anatomy.STEP1_FROM_CODE)


def step2_classes(labels: NDArray[np.integer[Any]]) -> Codes:
    """Return the perfect step-2 network result for a label map.

    Args:
        labels: Output codes (X, Y, Z). Not modified.

    Returns:
        Step-2 classes, uint8 (X, Y, Z); all 0 for an empty map.
    """
    return _look_up(labels, anatomy.STEP2_FROM_CODE)
