"""Draw vertebrae, the dens, discs, sacrum, coccyx and implants into a label map and a map of tissues."""

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from totalspineseg_server import anatomy
from totalspineseg_server.synthesis.column import BentColumn, Segment, Vertebra
from totalspineseg_server.synthesis.shapes import (
    WORLD,
    Box,
    Local,
    Mask,
    Raster,
    Reach,
    arch,
    arch_reach,
    atlas,
    body,
    body_reach,
    canal_center,
    capsule,
    outline,
    spinous,
    spinous_reach,
)
from totalspineseg_server.synthesis.tissues import Tissue

Codes = NDArray[np.uint8]

_DENS_RADIUS_MM, _DENS_HEIGHT_MM = 5.5, 16.0
"""Radius and height of the dens. Source: Kulkarni et al., Indian J Orthop 47(3), 2013, 250-254 (diameter 11.5 x 9.9
mm); Vasilopoulos et al., Cureus 12(3), 2020 (height 17 to 19 mm)."""
_DENS_LINE_ODDS = 0.5
"""Odds that the joint between dens and body of C2 is visible as a line, which looks like a disc to a network. Source:
it persists in most adults, over a quarter of the depth (Gebauer et al., Eur Spine J 15, 2006); the odds are ours."""
_DENS_LINE_MM = (9.0, 13.0)
"""Height of that line above the base of C2. Source: Tubbs et al., World Neurosurg 96, 2016, 80-84 (MRI)."""
_BULGE = {"cervical": 0.7, "thoracic": 0.5, "lumbar": 1.2}
"""Bulge of the discs of each region relative to their common spread. The numbers are ours and follow where discs
usually bulge."""
_ENDPLATE_MM, _ENDPLATE_SHARE = 1.0, 0.2
"""Distance of a disc's label from the bones, and its largest share of the disc's height: labels made by hand
leave out the dark endplates. In 21 of 25 patients of SPIDER, 1.1 to 2.7 mm lie between the masks of a disc and of a
body, which ends where its marrow does; here it includes the shell, of 0.75 mm on step 2's training grid."""

_DARK_ODDS = {"cervical": 0.5, "thoracic": 0.4, "lumbar": 0.5}
"""Odds that a disc has no bright nucleus; higher for the lowest one. Source: loss of signal in 54 % of people of 40 and
86 % of those of 60 (Brinjikji et al., AJNR 36(4), 2015); scans show more older people."""
_LOWEST_DARK_ODDS = 0.65
_CLEFT_ODDS = 0.5
"""Odds that a bright nucleus has a dark line at half height, as in adults."""
_ENDPLATE_ODDS = 0.06
"""Odds that the bone at an endplate has another signal (Modic changes): fat, water or hard bone."""
Tissues = NDArray[np.uint8]
Point = NDArray[np.float64]

IMPLANT_ODDS = 0.05
"""Share of columns with metal in them."""
_HELD_LEVELS = (2, 5)
"""Smallest and largest number of vertebrae that are held together."""
_SCREW_MM, _ROD_MM = (3.5, 6.0), (3.5, 5.5)
"""Radius of the void around a screw and a rod: two to three times that of the metal, as on spin echoes."""
_CEMENT_ODDS = 0.02
"""Share of columns with a vertebra that is filled with cement."""
_COCCYX_MM = 42.0
"""Length of the coccyx along its curve. Source: Woon et al., Eur Spine J 22(4), 2013, 863-870: 44 mm in men, 40 mm in
women."""


_DISC_TISSUES = (Tissue.ANNULUS, Tissue.SACRAL_DISC, Tissue.NUCLEUS)
"""Tissues of rudimentary discs: dark like most old discs, like marrow, or bright; all discs of a person are alike."""
_PLATE_MM = 0.9
"""Thickness of the cortical bone above and below a rudimentary disc."""


def draw_vertebra(rng: np.random.Generator, labels: Codes, tissues: Codes, vertebra: Vertebra, raster: Raster) -> None:
    """Draw body, arch and processes (for C1 a ring); about one body in twenty has a spot of another tissue."""
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
    if rng.random() < 0.06:  # The spot resembles a hemangioma, a metastasis or a Schmorl node.
        at = rng.uniform(-0.35, 0.35, 3) * (size.width, size.depth, size.height)
        spot = tuple(at), float(rng.uniform(0.15, 0.4)) * size.height
    if centrum is None:
        return
    box, local, solid = centrum
    vein = (np.abs(local.superior) < 1.5) & (np.abs(local.right) < 4) & (local.anterior < -size.depth * 0.15)
    tissues[box][solid & vein] = Tissue.VEIN
    if rng.random() < _ENDPLATE_ODDS:
        side, deep = rng.choice((-1, 1)), rng.uniform(0.1, 0.35) * size.height
        band = (size.height / 2 - side * local.superior + 0.3 * np.abs(local.anterior + rng.uniform(-8, 8))) < deep + 3
        tissues[box][solid & band] = rng.choice((Tissue.FAT, Tissue.LESION, Tissue.LIGAMENT))
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
    """Draw a part of a vertebra where nothing is labeled yet; return the voxels, or None if it is out of view."""
    box = raster.box(vertebra.frame, *reach)
    if box is None:
        return None
    local = raster.local(vertebra.frame, box)
    bone = shape(local, vertebra) & (labels[box] == 0)
    labels[box][bone], tissues[box][bone] = vertebra.code, tissue
    return box, local, bone


def draw_dens(rng: np.random.Generator, labels: Codes, tissues: Codes, column: BentColumn, raster: Raster) -> None:
    """Draw the dens of C2 (over C1 where they meet), with or without the line at its base."""
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


def draw_disc(
    rng: np.random.Generator, labels: Codes, tissues: Codes, vertebra: Vertebra, raster: Raster, jitter: float
) -> None:
    """Draw the disc below a vertebra, between the bones; a degenerate disc has no nucleus. Its label begins at some
    distance from the bones."""
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
    tissues[box][disc] = Tissue.ANNULUS
    bone = labels[box] != 0
    gap = min(_ENDPLATE_MM, _ENDPLATE_SHARE * size.disc_height)
    labels[box][disc & (distance_transform_edt(~bone, sampling=raster.spacing) > gap)] = vertebra.disc
    dark = _LOWEST_DARK_ODDS if vertebra.disc == anatomy.DISC_L5_S else _DARK_ODDS[vertebra.region]
    if rng.random() > dark * jitter:
        share = rng.uniform(0.35, 0.75)
        lens = 0.46 * size.disc_height * np.sqrt(np.clip(1 - rim / share, 0, 1))
        off = np.abs(local.superior)
        tissues[box][disc & (off < lens)] = Tissue.NUCLEUS
        if rng.random() < _CLEFT_ODDS * jitter:
            tissues[box][disc & (off < np.minimum(0.6, lens)) & (rim < 0.5 * share)] = Tissue.ANNULUS


def draw_cortical_shell(labels: Codes, tissues: Codes) -> None:
    """Draw a layer of cortical bone, one voxel thick, in front of, behind, above and below vertebrae."""
    bone = np.isin(labels, (*anatomy.VERTEBRAE, anatomy.SACRUM))
    edge = np.zeros_like(bone)
    for axis in (1, 2):
        low = tuple(slice(None, -1) if k == axis else slice(None) for k in range(3))
        high = tuple(slice(1, None) if k == axis else slice(None) for k in range(3))
        differs = labels[low] != labels[high]
        edge[low] |= differs
        edge[high] |= differs
    tissues[bone & edge] = Tissue.CORTICAL


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
        count = int(rng.integers(_HELD_LEVELS[0], _HELD_LEVELS[1] + 1))
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


def draw_sacrum(rng: np.random.Generator, labels: Codes, tissues: Codes, column: BentColumn, raster: Raster) -> None:
    """Draw S1 .. S5 with alae, rudimentary discs between them, and the bone behind the sacral canal."""
    filling = _DISC_TISSUES[int(rng.integers(len(_DISC_TISSUES)))]
    for number, segment in enumerate(column.sacrum):
        half, w, d = segment.height / 2, segment.width / 2, segment.depth
        box = raster.box(segment.frame, (-w - 5, -d / 2 - 40, -half - 6), (w + 5, d / 2 + 5, half + 6))
        if box is None:
            continue
        local = raster.local(segment.frame, box)
        part = _sacral_part(local, segment, number)
        labels[box][part] = anatomy.SACRUM
        tissues[box][part] = Tissue.MARROW
    for number, segment in enumerate(column.sacrum[:-1]):
        _draw_gap(labels, tissues, segment, number, raster, filling)
    _draw_coccyx(tissues, column, raster)


def _draw_coccyx(tissues: Codes, column: BentColumn, raster: Raster) -> None:
    """Draw the coccyx below S5, bending forward, in tissues only: the label table has no name for it."""
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


def _draw_gap(labels: Codes, tissues: Codes, segment: Segment, number: int, raster: Raster, filling: Tissue) -> None:
    """Draw the rudimentary disc below a segment between two plates of cortical bone; its label stays the sacrum."""
    low, thick = -segment.height / 2, segment.gap / 2
    width, depth = (0.5 - 0.03 * number) * segment.width, 0.88 * segment.depth
    reach = thick + 2 * _PLATE_MM
    box = raster.box(segment.frame, (-width / 2, -depth / 2, low - reach), (width / 2, depth / 2, low + reach))
    if box is None or segment.gap <= 0:
        return
    local = raster.local(segment.frame, box)
    inside = (outline(local, width, depth) < 1) & (labels[box] == anatomy.SACRUM)
    off = np.abs(local.superior - low)
    tissues[box][inside & (off < thick + _PLATE_MM)] = Tissue.CORTICAL
    tissues[box][inside & (off < thick)] = filling


def _sacral_part(local: Local, segment: Segment, number: int) -> NDArray[np.bool_]:
    half, w, d = segment.height / 2, segment.width / 2, segment.depth
    narrow = 1 - 0.12 * (half - local.superior) / segment.height  # The sacrum tapers downward.
    tall = np.abs(local.superior) < half + 0.6
    core = (outline(local, 0.52 * segment.width, d) < narrow**2) & tall
    side = np.abs(local.right)
    drop = np.clip(side - 0.2 * w, 0, None)  # The alae slope backward and sideways.
    wing = (side < w * narrow) & (np.abs(local.anterior + 0.3 * drop + 0.12 * d) < 0.42 * d + 2) & tall
    hole = (side - 0.42 * w) ** 2 + (local.superior + half) ** 2 < 16.0
    back = -(d / 2 + 15.0 * (1 - 0.12 * number))
    plate = (np.abs(local.anterior - back + 0.25 * side) < 4.0) & (side < 0.42 * w) & tall
    walls = (np.abs(side - 0.33 * w) < 5) & (local.anterior < -d / 2 + 4) & (local.anterior > back) & tall
    crest = capsule(local, (0, back - 3, -half * 0.6), (0, back - 8, half * 0.4), 3.5) & (number < 4)
    return np.asarray(core | (wing & ~hole) | plate | walls | crest)
