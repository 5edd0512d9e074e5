"""A random spine as a label map and a map of tissues."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lib import anatomy
from lib.synthesis.canal import EPIDURAL_REACH_MM, CanalCurve, trace_canal
from lib.synthesis.column import BentColumn, Segment, Vertebra, bend_column
from lib.synthesis.options import Field, SpineOptions
from lib.synthesis.raster import WORLD, Box, Raster
from lib.synthesis.shapes import (
    Local,
    Mask,
    Reach,
    arch,
    arch_reach,
    atlas,
    body,
    body_reach,
    capsule,
    outline,
    spinous,
    spinous_reach,
)
from lib.synthesis.surroundings import draw_surroundings
from lib.synthesis.tissues import Tissue

Codes = NDArray[np.uint8]

_VARIANT_ODDS = ((11, 0.03), (12, 0.94), (13, 0.03)), ((4, 0.05), (5, 0.89), (6, 0.06))
"""How often a thoracic and a lumbar count is drawn: anomalies twice as often as in people (7.7 %: Tins and Balain,
Insights Imaging 7(2), 2016, 199-203), so that networks see them."""
_USUAL_COUNT = len(anatomy.column().vertebrae)
_DENS_RADIUS_MM, _DENS_HEIGHT_MM = 5.5, 16.0
"""Source: Kulkarni et al., Indian J Orthop 47(3), 2013, 250-254 (diameter 11.5 x 9.9 mm); Vasilopoulos et al., Cureus
12(3), 2020 (height 17 to 19 mm)."""
_DENS_LINE_ODDS = 0.5
"""How often the joint between dens and body of C2 shows as a line. Source: it persists in most adults, over a quarter
of the depth (Gebauer et al., Eur Spine J 15, 2006); how often it shows is ours. To a network it is a disc."""
_DENS_LINE_MM = (9.0, 13.0)
"""Its height above the base of C2. Source: Tubbs et al., World Neurosurg 96, 2016, 80-84 (MRI)."""
_GRAY_SHARE = (0.62, 0.5)
"""Width and depth of the gray matter, horns and all, against the cord's; an ellipse, for networks see no horns."""
_COCCYX_MM = 42.0
"""Length along its curve. Source: Woon et al., Eur Spine J 22(4), 2013, 863-870: 44 mm in men, 40 mm in women."""
_BULGE = {"cervical": 0.7, "thoracic": 0.5, "lumbar": 1.2}
"""How much discs of a region bulge, against their common spread; ours, from where they usually do."""
_FIELD_LEVELS: Mapping[Field, tuple[tuple[int, int] | None, tuple[int, int] | None]] = {
    Field.WHOLE: (None, None),
    Field.CERVICAL: (None, (8, 11)),
    Field.CERVICOTHORACIC: (None, (11, 15)),
    Field.THORACIC: ((5, 9), (17, 21)),
    Field.THORACOLUMBAR: ((12, 16), (21, 24)),
    Field.LUMBAR: ((16, 19), None),
    Field.LOWER_LUMBAR: ((19, 21), None),
}
"""Field -> range of the first and of the last vertebra in view, by position from C1 = 0;
None: the head, the tail bone."""


@dataclass(frozen=True)
class SyntheticSpine:
    """A drawn spine.

    Attributes:
        labels: Output codes, uint8 (X, Y, Z), RAS.
        tissues: ``Tissue`` numbers on the same grid.
        affine: Voxel -> RAS mm.
        column: "normal" or the variant drawn ("T11", "L6", ..).
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
    """Draw a spine, its surroundings and the field of view.

    Args:
        rng: Source of all randomness; the same state gives the same spine.
        options: What is wanted; everything left open is drawn.

    Returns:
        The spine, RAS, its first voxel at a random place in the scanner.
    """
    options = options or SpineOptions()
    thoracic, lumbar = options.thoracic, options.lumbar
    drawn = [int(rng.choice([n for n, _ in odds], p=[p for _, p in odds])) for odds in _VARIANT_ODDS]
    column = bend_column(rng, thoracic or drawn[0], lumbar or drawn[1], options.jitter)
    raster = _frame_scan(rng, column, options)
    curve = trace_canal(rng, column, raster, options.jitter)
    tissues = draw_surroundings(rng, column, curve, raster, options.jitter)
    labels = np.zeros(raster.shape, np.uint8)
    _draw_sacrum(labels, tissues, column, raster)
    for vertebra in column.vertebrae:
        _draw_vertebra(rng, labels, tissues, vertebra, raster)
    _draw_dens(rng.spawn(1)[0], labels, tissues, column, raster)
    for vertebra in column.vertebrae:
        _draw_disc(rng, labels, tissues, vertebra, raster, options.jitter)
    _cortical_shell(labels, tissues)
    _draw_canal(rng, labels, tissues, curve, raster)
    codes = tuple(v.code for v in column.vertebrae)
    discs = tuple(v.disc for v in column.vertebrae if v.disc is not None)
    return SyntheticSpine(labels, tissues, raster.affine, column.name, codes, discs)


def _frame_scan(rng: np.random.Generator, column: BentColumn, options: SpineOptions) -> Raster:
    """Choose the box of the scan around the levels the field names."""
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
    spread = np.ptp(seen, axis=0)
    width = options.width_mm or spread[0] + rng.uniform(50, 120)
    depth = options.depth_mm or spread[1] + rng.uniform(120, 210)
    center = middle + rng.uniform(-1, 1, 3) * (0.06 * width, 0.08 * depth, 0)
    center[1] += rng.uniform(-0.1, 0.12) * depth
    spacing = np.asarray(options.spacing_mm)
    shape = np.maximum(np.round(np.array([width, depth, top - bottom]) / spacing).astype(int), 8)
    origin = np.array([center[0], center[1], (top + bottom) / 2]) - spacing * (shape - 1) / 2
    return Raster(tuple(int(n) for n in shape), options.spacing_mm, tuple(float(v) for v in origin))  # type: ignore[arg-type]


def _draw_sacrum(labels: Codes, tissues: Codes, column: BentColumn, raster: Raster) -> None:
    """S1 .. S5 with alae, rudimentary discs between them, and the bone behind the sacral canal."""
    for number, segment in enumerate(column.sacrum):
        half, w, d = segment.height / 2, segment.width / 2, segment.depth
        box = raster.box(segment.frame, (-w - 5, -d / 2 - 40, -half - 6), (w + 5, d / 2 + 5, half + 6))
        if box is None:
            continue
        local = raster.local(segment.frame, box)
        part, gap = _sacral_part(local, segment, number)
        labels[box][part] = anatomy.SACRUM
        tissues[box][part] = Tissue.MARROW
        if number < len(column.sacrum) - 1:
            tissues[box][part & gap] = Tissue.SACRAL_DISC
    _draw_coccyx(tissues, column, raster)


def _draw_coccyx(tissues: Codes, column: BentColumn, raster: Raster) -> None:
    """The tail bone below S5, bending forward: tissue alone, the label table has no name for it."""
    last = column.sacrum[-1]
    long = _COCCYX_MM * column.scale
    box = raster.box(last.frame, (-12, -12, -last.height / 2 - long - 6), (12, long, 0))
    if box is None:
        return
    local = raster.local(last.frame, box)
    top = -last.height / 2
    bone = np.zeros(tissues[box].shape, bool)
    for first, radius in ((0.0, 6.0), (0.35, 5.0), (0.7, 3.5)):
        ends = [(0.0, 0.5 * long * t**1.5, top - long * t) for t in (first + 0.06, first + 0.28)]
        bone |= capsule(local, ends[0], ends[1], radius * column.scale)
    tissues[box][bone & (tissues[box] != Tissue.AIR)] = Tissue.OTHER_BONE


def _sacral_part(local: Local, segment: Segment, number: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    half, w, d = segment.height / 2, segment.width / 2, segment.depth
    narrow = 1 - 0.12 * (half - local.superior) / segment.height  # tapers downward
    tall = np.abs(local.superior) < half + 0.6
    core = (outline(local, 0.52 * segment.width, d) < narrow**2) & tall
    side = np.abs(local.right)
    drop = np.clip(side - 0.2 * w, 0, None)  # the alae fall back and sideways
    wing = (side < w * narrow) & (np.abs(local.anterior + 0.3 * drop + 0.12 * d) < 0.42 * d + 2) & tall
    hole = (side - 0.42 * w) ** 2 + (local.superior + half) ** 2 < 16.0
    back = -(d / 2 + 15.0 * (1 - 0.12 * number))
    plate = (np.abs(local.anterior - back + 0.25 * side) < 4.0) & (side < 0.42 * w) & tall
    walls = (np.abs(side - 0.33 * w) < 5) & (local.anterior < -d / 2 + 4) & (local.anterior > back) & tall
    crest = capsule(local, (0, back - 3, -half * 0.6), (0, back - 8, half * 0.4), 3.5) & (number < 4)
    gap = (local.superior < -half + 1.3) & (outline(local, 0.4 * segment.width, 0.75 * d) < 1)
    return (core | (wing & ~hole) | plate | walls | crest), np.asarray(gap)


def _draw_vertebra(rng: np.random.Generator, labels: Codes, tissues: Codes, vertebra: Vertebra, raster: Raster) -> None:
    size = vertebra.size
    reach = size.transverse_width / 2 + 4
    back = size.depth / 2 + size.canal_depth + size.spinous_length + 8
    low = size.height + size.spinous_length * size.spinous_slope + 8
    whole = (-reach, -back, -low), (reach, size.depth / 2 + 6, size.height + 8)
    if raster.box(vertebra.frame, *whole) is None:
        return
    if vertebra.index == 0:
        ring = partial(atlas, dens_radius=_DENS_RADIUS_MM)
        _draw_bone(labels, tissues, vertebra, raster, ring, whole, Tissue.ARCH_MARROW)
        return
    centrum = _draw_bone(labels, tissues, vertebra, raster, body, body_reach(vertebra), Tissue.MARROW)
    _draw_bone(labels, tissues, vertebra, raster, arch, arch_reach(vertebra), Tissue.ARCH_MARROW)
    _draw_bone(labels, tissues, vertebra, raster, spinous, spinous_reach(vertebra), Tissue.ARCH_MARROW)
    spot = None
    if rng.random() < 0.06:  # hemangioma, metastasis or Schmorl-like spot
        at = rng.uniform(-0.35, 0.35, 3) * (size.width, size.depth, size.height)
        spot = tuple(at), float(rng.uniform(0.15, 0.4)) * size.height
    if centrum is None:
        return
    box, local, solid = centrum
    vein = (np.abs(local.superior) < 1.5) & (np.abs(local.right) < 4) & (local.anterior < -size.depth * 0.15)
    tissues[box][solid & vein] = Tissue.VEIN
    if spot is not None:
        tissues[box][solid & capsule(local, spot[0], *spot)] = Tissue.LESION


def _draw_bone(
    labels: Codes,
    tissues: Codes,
    vertebra: Vertebra,
    raster: Raster,
    shape: Callable[[Local, Vertebra], Mask],
    reach: Reach,
    tissue: Tissue,
) -> tuple[Box, Local, Mask] | None:
    """Draw a part of a vertebra where nothing is labeled yet; returns where, None where it is out of view."""
    box = raster.box(vertebra.frame, *reach)
    if box is None:
        return None
    local = raster.local(vertebra.frame, box)
    bone = shape(local, vertebra) & (labels[box] == 0)
    labels[box][bone], tissues[box][bone] = vertebra.code, tissue
    return box, local, bone


def _draw_dens(rng: np.random.Generator, labels: Codes, tissues: Codes, column: BentColumn, raster: Raster) -> None:
    axis = column.vertebrae[1]
    half, scale = axis.size.height / 2, column.scale
    tip = half + _DENS_HEIGHT_MM * scale
    box = raster.box(axis.frame, (-12, -14, 0), (12, 14, tip + 8))
    if box is None:
        return
    local = raster.local(axis.frame, box)
    lean = -1.5
    dens = capsule(local, (0, 0, half - 3), (0, lean, tip - _DENS_RADIUS_MM), _DENS_RADIUS_MM * scale)
    dens &= (labels[box] == 0) | (labels[box] == anatomy.C1)
    labels[box][dens], tissues[box][dens] = axis.code, Tissue.MARROW
    if rng.random() < _DENS_LINE_ODDS:
        line = np.abs(local.superior + half - scale * rng.uniform(*_DENS_LINE_MM)) < rng.uniform(0.6, 1.6)
        wide = local.right**2 + (local.anterior - lean / 2) ** 2 < (_DENS_RADIUS_MM * scale) ** 2
        tissues[box][line & wide & (labels[box] == axis.code)] = (
            Tissue.ANNULUS if rng.random() < 0.6 else Tissue.CORTICAL
        )


def _draw_disc(
    rng: np.random.Generator, labels: Codes, tissues: Codes, vertebra: Vertebra, raster: Raster, jitter: float
) -> None:
    if vertebra.disc is None:
        return
    size = vertebra.size
    bulge = 1 + jitter * _BULGE[vertebra.region] * float(np.clip(rng.normal(0.02, 0.04), -0.06, 0.15))
    width, depth = size.width * bulge, size.depth * bulge
    half = size.disc_height / 2 + 0.06 * size.height + 0.8
    box = raster.box(vertebra.disc_frame, (-width / 2, -depth / 2, -half), (width / 2, depth / 2, half))
    if box is None:
        return
    local = raster.local(vertebra.disc_frame, box)
    rim = outline(local, width, depth)
    disc = (rim < 1) & (np.abs(local.superior) < half) & (labels[box] == 0)
    labels[box][disc], tissues[box][disc] = vertebra.disc, Tissue.ANNULUS
    if rng.random() > 0.35 * jitter:  # the rest are degenerate: no bright nucleus
        nucleus = disc & (rim < rng.uniform(0.3, 0.7)) & (np.abs(local.superior) < 0.42 * size.disc_height)
        tissues[box][nucleus] = Tissue.NUCLEUS


def _cortical_shell(labels: Codes, tissues: Codes) -> None:
    """One voxel of cortical bone where a vertebra meets something else (front, back, top, bottom)."""
    bone = np.isin(labels, (*anatomy.VERTEBRAE, anatomy.SACRUM))
    edge = np.zeros_like(bone)
    for axis in (1, 2):
        low = tuple(slice(None, -1) if k == axis else slice(None) for k in range(3))
        high = tuple(slice(1, None) if k == axis else slice(None) for k in range(3))
        differs = labels[low] != labels[high]
        edge[low] |= differs
        edge[high] |= differs
    tissues[bone & edge] = Tissue.CORTICAL


def _draw_canal(rng: np.random.Generator, labels: Codes, tissues: Codes, curve: CanalCurve, raster: Raster) -> None:
    """Epidural fat, dural sac, cauda equina and cord, over whatever bone reached in."""
    filling = Tissue.EPIDURAL if rng.random() < 0.7 else Tissue.LIGAMENT
    scattered = rng.random(raster.shape) < 0.6
    middle = np.stack([curve.x, curve.y, curve.z])
    reach_mm = np.stack([curve.width, curve.depth, np.zeros_like(curve.z)]) / 2 + EPIDURAL_REACH_MM
    box = raster.box(WORLD, (middle - reach_mm).min(1), (middle + reach_mm).max(1))
    if box is None:
        return
    labels, tissues, scattered = labels[box], tissues[box], scattered[box]
    x = raster.axis(0)[box[0], None, None]
    y = raster.axis(1)[None, box[1], None]

    def ellipse(
        cx: NDArray[np.float64], cy: NDArray[np.float64], w: NDArray[np.float64], d: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        scaled = [v.astype(np.float32)[None, None, :] for v in (cx, cy, np.maximum(w, 1e-3), np.maximum(d, 1e-3))]
        return np.asarray(((x - scaled[0]) * 2 / scaled[2]) ** 2 + ((y - scaled[1]) * 2 / scaled[3]) ** 2)

    below = (curve.z < curve.top)[None, None, :]
    reach = 2 * EPIDURAL_REACH_MM
    around = (ellipse(curve.x, curve.y, curve.width + reach, curve.depth + reach) < 1) & below & (labels == 0)
    tissues[around] = filling
    inside = ellipse(curve.x, curve.y, curve.width, curve.depth) < 1
    cord = (ellipse(curve.cord_x, curve.cord_y, curve.cord_width, curve.cord_depth) < 1) & inside
    fluid = inside & (curve.z < curve.top + 15)[None, None, :]
    tissues[fluid] = Tissue.CSF
    labels[inside & below] = anatomy.CANAL
    tail = (curve.cord_width < 5)[None, None, :] & below
    roots = ellipse(curve.x, curve.y - 0.2 * curve.depth, curve.width * 0.8, curve.depth * 0.55) < 1
    tissues[inside & tail & roots & scattered] = Tissue.CAUDA_EQUINA
    tissues[cord & (curve.z < curve.top + 15)[None, None, :]] = Tissue.CORD
    wide, deep = _GRAY_SHARE
    core = ellipse(curve.cord_x, curve.cord_y, wide * curve.cord_width, deep * curve.cord_depth) < 1
    tissues[core & cord & (tissues == Tissue.CORD)] = Tissue.GRAY_MATTER
    labels[cord & below] = anatomy.CORD
