"""Trace the dural sac and the cord in it from slice to slice, and draw them into a label map and a map of tissues."""

from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from totalspineseg_server import anatomy
from totalspineseg_server.synthesis import morphometry as mm
from totalspineseg_server.synthesis.column import BentColumn
from totalspineseg_server.synthesis.shapes import WORLD, Raster, canal_center
from totalspineseg_server.synthesis.tissues import Tissue

Codes = NDArray[np.uint8]
Floats = NDArray[np.float64]

SAC_SHARE = (0.86, 0.88)
"""Width and depth of the dural sac relative to the bony canal (the rest is epidural fat and veins)."""
_NECK_SAC = ((1.0, 1.0), (0.95, 0.92), *[(0.93, 0.86)] * 5, (0.97, 0.92))
"""Width and depth of the sac from C1 to T1 relative to other levels. Source: on four public T2 scans, cut half-way
between cord and fluid, the sac of C3 to C7 has 145 to 250 mm2, of which the cord fills 0.32 to 0.54 (mean 0.45)."""
_SAC_RANGE = ((0.78, 1.06), (0.74, 1.10))
"""Width and depth of a person's sac relative to the usual one. Source: sagittal canal of 11 to 18 mm in healthy necks
(Ulbrich et al., Radiology 271(1), 2014), in which a cord of 7 to 8 mm leaves rims of 1.5 to 4 mm."""
_STENOSIS_ODDS, _STENOSIS, _STENOSIS_REACH_MM = 0.3, (0.1, 0.35), 5.0
"""Share of columns with narrow levels, share of the depth lost at a disc, and reach of the narrowing along the
canal."""
_RIM_MM = 2.0
"""Smallest width of the fluid around the cord, both sides together."""
_SACRAL_CANAL_MM = ((22.0, 14.0), (17.0, 11.0), (12.0, 8.0))
"""Width and depth of the canal at S1, S2, S3."""
EPIDURAL_REACH_MM = 2.5
"""How far epidural fat reaches beyond the dural sac."""
_FAT_PADS_MM = (6.0, 7.0)
"""How much farther the fat reaches behind the lumbar sac, between the laminae, and in front of the sac at the
sacrum."""
_THREADS, _THREAD_MM = 48, 0.9
"""Nerve roots are threads along the sac: number of possible places on each side, and thickness."""
ABOVE_ATLAS_MM = 7.0
"""Distance from the middle of C1 up to the end of the labeled canal, at the foramen magnum."""
_GRAY_SHARE = (0.62, 0.5)
"""Width and depth of the gray matter, including the horns, relative to the cord. It is an ellipse, because networks do
not see the horns."""


@dataclass(frozen=True)
class CanalCurve:
    """Canal and cord at every height, as arrays of one length, RAS mm.

    Attributes:
        z: Heights.
        x: Middle of the canal, right to left.
        y: Middle of the canal, front to back.
        width: Width of the dural sac, right to left.
        depth: Depth of the dural sac, front to back, in the axial plane.
        cord_x: Middle of the cord, right to left.
        cord_y: Middle of the cord, front to back.
        cord_width: Width of the cord, right to left; 0 if there is none.
        cord_depth: Depth of the cord, front to back; 0 if there is none.
        top: Height of the upper end of the labeled canal.
        bottom: Height of the lower end of the dural sac.
        pads: Share of the fat pads behind the sac and in front of it.
    """

    z: Floats
    x: Floats
    y: Floats
    width: Floats
    depth: Floats
    cord_x: Floats
    cord_y: Floats
    cord_width: Floats
    cord_depth: Floats
    top: float
    bottom: float
    pads: tuple[Floats, Floats]


def trace_canal(rng: np.random.Generator, column: BentColumn, raster: Raster, jitter: float) -> CanalCurve:
    """Place canal and cord along the column.

    Args:
        rng: Source of randomness.
        column: The bent column.
        raster: Grid with the heights to compute.
        jitter: Strength of the variation.

    Returns:
        The curve at each slice of the grid.
    """
    knots = []
    for vertebra, neck in zip(column.vertebrae, chain(_NECK_SAC, repeat((1.0, 1.0))), strict=False):
        size, offset = vertebra.size, canal_center(vertebra)
        wide, deep = neck
        tilt = max(float(vertebra.frame.axes[2, 2]), 0.6)
        for rise in (-0.45, 0.45):
            point = vertebra.frame.point(0, offset, rise * size.height)
            knots.append((*point, wide * size.canal_width, deep * size.canal_depth / tilt))
    for segment, (width, depth) in zip(column.sacrum[:3], _SACRAL_CANAL_MM, strict=True):
        tilt = max(float(segment.frame.axes[2, 2]), 0.6)
        point = segment.frame.point(0, -(segment.depth / 2 + depth / 2), 0)
        knots.append((*point, width * column.scale, depth * column.scale / tilt))
    last = np.array(knots[-1])
    knots.append((last[0], last[1] - 4.0, last[2] - 25.0, 8.0, 5.0))
    atlas = column.vertebrae[0]
    up = atlas.frame.point(0, canal_center(atlas), 45.0)
    knots.append((up[0], up[1] + 4.0, up[2], 30.0, 28.0))
    table = np.array(sorted(knots, key=lambda k: k[2]))
    table = table[np.r_[True, np.diff(table[:, 2]) > 0.5]]
    z = raster.axis(2).astype(np.float64)
    curves = PchipInterpolator(table[:, 2], table[:, [0, 1, 3, 4]], axis=0)(np.clip(z, table[0, 2], table[-1, 2]))
    share = np.array(SAC_SHARE) * (1 + jitter * 0.06 * rng.standard_normal(2))
    x, y, width, depth = (
        curves[:, 0],
        curves[:, 1],
        curves[:, 2] * min(share[0], 0.95),
        curves[:, 3] * min(share[1], 0.97),
    )
    habitus = rng.spawn(1)[0]  # This has its own random stream, so that the other draws of a seed stay the same.
    width = width * (1 + jitter * (habitus.uniform(*_SAC_RANGE[0]) - 1))
    depth = depth * (1 + jitter * (habitus.uniform(*_SAC_RANGE[1]) - 1)) * _stenoses(habitus, column, z, jitter)
    top = float(atlas.frame.point(0, canal_center(atlas), ABOVE_ATLAS_MM + jitter * rng.uniform(-4, 6))[2])
    bottom = float(column.sacrum[1].frame.origin[2] + jitter * rng.normal(0, 9))
    taper = np.clip((z - bottom) / 25.0, 0, 1) ** 0.5
    width, depth = width * taper, depth * taper
    return CanalCurve(
        z, x, y, width, depth, *_cord(rng, column, z, x, y, width, depth, jitter), top, bottom, _pads(column, z)
    )


def _pads(column: BentColumn, z: Floats) -> tuple[Floats, Floats]:
    """Return the share of the fat behind the sac, from L1 down, and in front of it, from the lowest vertebra down."""
    first_lumbar = max(v.frame.origin[2] for v in column.vertebrae if v.region == "lumbar")
    lowest = column.vertebrae[-1].frame.origin[2]
    return np.clip((first_lumbar + 25 - z) / 40, 0, 1), np.clip((lowest - 5 - z) / 20, 0, 1)


def _stenoses(rng: np.random.Generator, column: BentColumn, z: Floats, jitter: float) -> Floats:
    """Return the share of the sac's depth that remains at each height where discs press on it."""
    left = np.ones_like(z)
    if rng.random() >= _STENOSIS_ODDS * jitter:
        return left
    discs = [v.disc_frame.origin[2] for v in column.vertebrae if v.disc is not None]
    for height in rng.choice(discs, size=int(rng.integers(1, 5)), replace=False):
        left *= 1 - rng.uniform(*_STENOSIS) * np.exp(-(((z - height) / _STENOSIS_REACH_MM) ** 2) / 2)
    return left


def _cord(
    rng: np.random.Generator,
    column: BentColumn,
    z: Floats,
    x: Floats,
    y: Floats,
    width: Floats,
    depth: Floats,
    jitter: float,
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return middle and size of the cord in each slice; it ends near L1 and lies on the inside of the curves."""
    first_lumbar = next(v for v in column.vertebrae if v.region == "lumbar")
    step = first_lumbar.size.height + first_lumbar.size.disc_height
    middle = first_lumbar.frame.origin[2] - first_lumbar.size.height / 4  # The cord ends at the lower third of L1.
    tip = float(middle + jitter * rng.normal(0, 0.5) * step)
    start = float(column.vertebrae[0].frame.origin[2])
    along = np.clip((start - z) / (start - tip), -0.3, 1.0)
    grow = column.scale**0.5 * (1 + jitter * 0.07 * rng.standard_normal())
    cord_width = np.interp(along, mm.CORD_POSITIONS, mm.CORD_WIDTHS) * grow
    cord_depth = np.interp(along, mm.CORD_POSITIONS, mm.CORD_DEPTHS) * grow
    cord_width = np.minimum(cord_width, width - _RIM_MM) * (z >= tip)
    cord_depth = np.minimum(cord_depth, depth - _RIM_MM) * (z >= tip)
    forward = np.interp(along, (0.0, 0.3, 0.6, 0.8, 1.0), (0.0, 0.1, 0.5, 0.3, -0.4))
    forward = forward + jitter * 0.15 * rng.standard_normal()
    room = np.clip((depth - cord_depth) / 2 - 0.8, 0, None)
    drift = jitter * 0.15 * rng.standard_normal() * np.clip((width - cord_width) / 2 - 0.8, 0, None)
    return x + drift, y + np.clip(forward, -1, 1) * room, np.clip(cord_width, 0, None), np.clip(cord_depth, 0, None)


def draw_canal(rng: np.random.Generator, labels: Codes, tissues: Codes, curve: CanalCurve, raster: Raster) -> None:
    """Draw epidural fat, dural sac, cauda equina and cord over any bone that reaches into the canal."""
    filling = Tissue.EPIDURAL if rng.random() < 0.7 else Tissue.LIGAMENT
    threads = rng.random((_THREADS, _THREADS)) < 0.6
    pads = rng.spawn(1)[0].uniform(0.3, 1.0, 2) * _FAT_PADS_MM
    behind, before = (pad * share for pad, share in zip(pads, curve.pads, strict=True))
    middle = np.stack([curve.x, curve.y, curve.z])
    reach_mm = np.stack([curve.width, curve.depth, np.zeros_like(curve.z)]) / 2 + EPIDURAL_REACH_MM
    reach_mm[1] += np.maximum(behind, before)
    box = raster.box(WORLD, (middle - reach_mm).min(1), (middle + reach_mm).max(1))
    if box is None:
        return
    labels, tissues = labels[box], tissues[box]
    x = raster.axis(0)[box[0], None, None]
    y = raster.axis(1)[None, box[1], None]

    def ellipse(cx: Floats, cy: Floats, w: Floats, d: Floats) -> NDArray[np.float32]:
        scaled = [v.astype(np.float32)[None, None, :] for v in (cx, cy, np.maximum(w, 1e-3), np.maximum(d, 1e-3))]
        return np.asarray(((x - scaled[0]) * 2 / scaled[2]) ** 2 + ((y - scaled[1]) * 2 / scaled[3]) ** 2)

    below = (curve.z < curve.top)[None, None, :]
    reach = 2 * EPIDURAL_REACH_MM
    around = (ellipse(curve.x, curve.y, curve.width + reach, curve.depth + reach) < 1) & below & (labels == 0)
    tissues[around] = filling
    pad_y, pad_depth = curve.y + (before - behind) / 2, curve.depth + reach + before + behind
    pad = (ellipse(curve.x, pad_y, 0.8 * (curve.width + reach), pad_depth) < 1) & below & (labels == 0) & ~around
    tissues[pad & (behind + before > 0.5)[None, None, :]] = Tissue.EPIDURAL
    inside = ellipse(curve.x, curve.y, curve.width, curve.depth) < 1
    cord = (ellipse(curve.cord_x, curve.cord_y, curve.cord_width, curve.cord_depth) < 1) & inside
    fluid = inside & (curve.z < curve.top + 15)[None, None, :]
    tissues[fluid] = Tissue.CSF
    labels[inside & below] = anatomy.CANAL
    tail = (curve.cord_width < 5)[None, None, :] & below
    roots = ellipse(curve.x, curve.y - 0.2 * curve.depth, curve.width * 0.8, curve.depth * 0.55) < 1
    nerves = inside & tail & roots
    at = np.nonzero(nerves)
    across, along = (
        np.round((axis.ravel()[i] - middle[at[2]]) / _THREAD_MM).astype(int) % _THREADS
        for axis, i, middle in ((x, at[0], curve.x), (y, at[1], curve.y))
    )
    nerves[at] = threads[across, along]
    tissues[nerves] = Tissue.CAUDA_EQUINA
    tissues[cord & (curve.z < curve.top + 15)[None, None, :]] = Tissue.CORD
    wide, deep = _GRAY_SHARE
    core = ellipse(curve.cord_x, curve.cord_y, wide * curve.cord_width, deep * curve.cord_depth) < 1
    tissues[core & cord & (tissues == Tissue.CORD)] = Tissue.GRAY_MATTER
    labels[cord & below] = anatomy.CORD
