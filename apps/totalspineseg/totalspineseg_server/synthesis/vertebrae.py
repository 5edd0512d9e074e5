"""Draw vertebrae, the dens and the discs between them into a label map and a map of tissues."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from totalspineseg_server import anatomy
from totalspineseg_server.synthesis.column import BentColumn, Vertebra
from totalspineseg_server.synthesis.raster import Box, Raster
from totalspineseg_server.synthesis.shapes import (
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
