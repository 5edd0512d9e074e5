"""Draw the surroundings of the column: ligaments, head, neck, chest, belly, pelvis, skin and air."""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from totalspineseg_server.synthesis.belly import BellySpace, draw_belly
from totalspineseg_server.synthesis.canal_shape import CanalCurve
from totalspineseg_server.synthesis.column import BentColumn, Frame, Vertebra
from totalspineseg_server.synthesis.head import LOWEST_MM, HeadSpace, draw_head
from totalspineseg_server.synthesis.shapes import WORLD, Box, Local, Raster, capsule, overlap, spinous_ends
from totalspineseg_server.synthesis.tissues import Tissue

_FRONT_RADIUS_MM, _TIP_RADIUS_MM, _SHEET_STEP_MM = 2.5, 2.5, 2.5
_FAT_ODDS, _FAT_RADIUS_MM, _SHEET_RADIUS_MM = 0.7, 3.2, 1.8
"""Odds of fat between the spinous processes, its half thickness, and that of the ligament in its place."""
Tissues = NDArray[np.uint8]
Floats = NDArray[np.float64]
Point = tuple[float, float, float]

_RIB, _NEXT_RIB, _LAST_RIB, _FIRST_RIB = (90.0, 26.0), (80.0, 34.0), (60.0, 42.0), (48.0, 10.0)
"""How far a rib reaches to the side and how far it falls, as far as it is drawn, mm; then the same for T11 and T12,
which end free, and for T1, which bends forward. The numbers are ours."""
_STOUT_ODDS, _STOUT_MM = 0.25, (8.0, 42.0)
"""Share of people with more fat under the skin of the back, and how much more."""
_RECTUM_MM = (7.0, 15.0)
_AORTA_MM = ((12.0, 9.0), 50.0)
"""Radius of aorta and vena cava above and below the diaphragm (Rogers et al., Am J Cardiol 111(10), 2013, 1510-1516),
and the height above the sacrum where the aorta divides: at L4."""


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


@dataclass(frozen=True)
class Heights:
    """Heights in mm of the landmarks that shape the trunk."""

    atlas: float
    neck: float
    first_rib: float
    diaphragm: float
    last_thoracic: float
    sacrum: float
    tail: float


def landmark_heights(rng: np.random.Generator, column: BentColumn, jitter: float) -> Heights:
    """Return the heights of the trunk's landmarks along a column."""
    z = [float(v.frame.origin[2]) for v in column.vertebrae]
    last = max(i for i, v in enumerate(column.vertebrae) if v.region == "thoracic")
    diaphragm = z[last - 2] + jitter * rng.normal(0, 12)
    return Heights(z[0], z[4], z[7], diaphragm, z[last], 0.0, float(column.sacrum[-1].frame.origin[2]))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], coarse: int) -> NDArray[np.float32]:
    """Return a smooth random field with about ``coarse`` bumps along the longest axis, standard deviation about 1."""
    longest = max(shape)
    small = [max(2, round(coarse * n / longest)) for n in shape]
    field = rng.standard_normal(small).astype(np.float32)
    across, along, up = (_interpolation(have, want) for have, want in zip(small, shape, strict=True))
    field = along @ (across @ field.reshape(small[0], -1)).reshape(shape[0], small[1], small[2])
    return np.asarray(field @ up.T, dtype=np.float32)


def _interpolation(have: int, want: int) -> NDArray[np.float32]:
    """Return the weights of linear interpolation from ``have`` evenly spaced values to ``want``, (want, have)."""
    place = np.linspace(0, have - 1, want)
    return np.clip(1 - np.abs(place[:, None] - np.arange(have)[None, :]), 0, 1).astype(np.float32)


def _slices(values: Floats) -> NDArray[np.float32]:
    return values.astype(np.float32)[None, None, :]


def draw_surroundings(
    rng: np.random.Generator, column: BentColumn, curve: CanalCurve, raster: Raster, jitter: float
) -> Tissues:
    """Paint everything but the column itself.

    Args:
        rng: Source of randomness.
        column: The bent column.
        curve: Canal and cord.
        raster: Grid of the scan.
        jitter: Strength of the variation.

    Returns:
        Tissue numbers, uint8 (X, Y, Z).
    """
    at = landmark_heights(rng, column, jitter)
    z = curve.z
    knots = [at.tail, at.sacrum, at.last_thoracic, at.first_rib, at.neck, at.atlas, at.atlas + 60]
    size = 1 + jitter * 0.12 * rng.standard_normal()
    fat = (3 + 14 * rng.random() ** 1.5) * min(1.0, 0.3 + jitter)
    stout = rng.spawn(1)[0]
    if stout.random() < _STOUT_ODDS * jitter:
        fat += stout.uniform(*_STOUT_MM)
    back = np.interp(z, knots, [34, 42, 50, 52, 55, 50, 75]) * size + fat
    depth = np.interp(z, knots, [190, 200, 205, 150, 115, 150, 190]) * size + 2 * fat
    half_width = np.interp(z, knots, [165, 165, 150, 170, 62, 75, 85]) * size + fat
    spine_x, spine_y = (
        np.convolve(np.pad(c, 20, mode="edge"), np.ones(41) / 41, mode="valid") for c in (curve.x, curve.y)
    )
    x = raster.axis(0)[:, None, None] - _slices(spine_x)  # The body follows its spine.
    y = raster.axis(1)[None, :, None]
    middle_y = spine_y - back + depth / 2

    def trunk(inset: float) -> NDArray[np.float32]:
        across = (x / _slices(half_width - inset)) ** 2
        along = ((y - _slices(middle_y)) / _slices(depth / 2 - inset)) ** 2
        return np.asarray(across + along, dtype=np.float32)

    out = np.zeros(raster.shape, np.uint8)
    out[trunk(0.0) < 1] = Tissue.SKIN
    out[trunk(2.0) < 1] = Tissue.FAT
    inner = trunk(2.0 + fat) < 1
    out[inner] = Tissue.MUSCLE
    noise = smooth_noise(rng, raster.shape, 14)
    streaks = smooth_noise(rng, raster.shape, 60)
    out[inner & (streaks > 1.5 - 0.6 * rng.random())] = Tissue.FAT
    ahead = y - _slices(spine_y)
    # Belly, head, ribs and ligaments have their own random streams, so that they do not change the other draws.
    _belly(rng.spawn(1)[0], out, noise, inner, Local(x, ahead, _slices(z - at.sacrum)), at.diaphragm, column.scale)
    _chest(rng, out, inner, x, ahead, z, at, column.scale)
    _head(rng.spawn(1)[0], out, noise, inner, Local(x, ahead, _slices(z - at.atlas)), column.scale)
    _ribs(rng.spawn(1)[0], out, column, raster)
    _vessels(rng, out, x, y, z, spine_y, at, column.scale)
    _pelvis(out, x, y, z, spine_y, at, column.scale)
    _rectum(rng.spawn(1)[0], out, column, raster)
    draw_ligaments(rng.spawn(1)[0], out, column, raster)
    return out


def _belly(
    rng: np.random.Generator,
    out: Tissues,
    noise: NDArray[np.float32],
    inner: NDArray[np.bool_],
    local: Local,
    diaphragm: float,
    scale: float,
) -> None:
    """Draw the belly in the part of the scan that it reaches."""
    where = np.flatnonzero(local.superior[0, 0] < diaphragm)
    if not where.size:
        return
    part = slice(None, int(where[-1]) + 1)
    cut = Local(local.right[..., part], local.anterior[..., part], local.superior[..., part])
    draw_belly(rng, out[..., part], BellySpace(cut, noise[..., part], inner[..., part], diaphragm, scale))


def _chest(
    rng: np.random.Generator,
    out: Tissues,
    inner: NDArray[np.bool_],
    x: NDArray[np.float32],
    ahead: NDArray[np.float32],
    z: Floats,
    at: Heights,
    scale: float,
) -> None:
    """Draw the lungs beside and in front of the thoracic column, the heart between them, and the windpipe."""
    top, bottom = at.first_rib + 5, at.diaphragm
    heart_z = bottom + 0.35 * (top - bottom)
    where = np.flatnonzero((z > min(bottom, heart_z - 60)) & (z < at.atlas - 45))
    if not where.size:
        return
    part = slice(int(where[0]), int(where[-1]) + 1)
    out, inner, x, ahead, z = out[..., part], inner[..., part], x[..., part], ahead[..., part], z[part]
    middle, half = (top + bottom) / 2, (top - bottom) / 2
    rise = np.clip(1 - np.abs((z - middle) / half) ** 3, 0, 1).astype(np.float32)[None, None, :]
    reach = np.sqrt(rise)
    for side in (-1, 1):
        center_x = side * (72 + 6 * rng.random()) * scale
        lung = ((x - center_x) / (62 * scale * reach + 1e-3)) ** 2 + ((ahead - 45) / (78 * scale * reach + 1e-3)) ** 2
        out[inner & (lung < 1)] = Tissue.LUNG
    heart = ((x + 15) / 55) ** 2 + ((ahead - 85 * scale) / 42) ** 2 + ((_slices(z) - heart_z) / 60) ** 2
    out[inner & (heart < 1)] = Tissue.ORGAN_C
    windpipe = (x / 8) ** 2 + ((ahead - 48 * scale) / 7) ** 2 < 1
    out[windpipe & (z > at.first_rib - 60)[None, None, :] & inner] = Tissue.AIR


def _head(
    rng: np.random.Generator,
    out: Tissues,
    noise: NDArray[np.float32],
    inner: NDArray[np.bool_],
    local: Local,
    scale: float,
) -> None:
    """Draw the head in the part of the scan that it reaches."""
    where = np.flatnonzero(local.superior[0, 0] > LOWEST_MM)
    if not where.size:
        return
    part = slice(int(where[0]), None)
    cut = Local(local.right[..., part], local.anterior[..., part], local.superior[..., part])
    draw_head(rng, out[..., part], HeadSpace(cut, noise[..., part], inner[..., part], scale))


def _ribs(rng: np.random.Generator, out: Tissues, column: BentColumn, raster: Raster) -> None:
    """Draw the back ends of the ribs, which run from the body outward, back and down; the last two are short and
    steep."""
    thoracic = [v for v in column.vertebrae if v.region == "thoracic"]
    for vertebra, (reach, fall) in zip(
        reversed(thoracic), [_LAST_RIB, _NEXT_RIB, *[_RIB] * len(thoracic)], strict=False
    ):
        box = raster.box(vertebra.frame, (-95.0, -60.0, -60.0), (95.0, 15.0 + 45.0 * (vertebra is thoracic[0]), 15.0))
        if box is None:
            continue
        size = vertebra.size
        first = vertebra is thoracic[0]
        reach, fall = _FIRST_RIB if first else (reach, fall)
        up = size.height * 0.42
        head = (size.width / 2, -size.depth * 0.35, up)
        bend = (size.transverse_width / 2 + 6, -size.depth / 2 - 22.0, up - 6)
        end = (reach * float(rng.uniform(0.9, 1.1)), -size.depth / 2 - 18.0, up - fall)
        pieces = [(head, bend, 4.5), (bend, end, 5.0)]
        if first:
            pieces.append((end, (0.8 * end[0], end[1] + 60.0, end[2] - 14.0), 5.0))
        for start, stop, radius in pieces:
            _rib(out, raster, vertebra.frame, (start, stop), radius, box)


def _rib(out: Tissues, raster: Raster, frame: Frame, line: tuple[Point, Point], radius: float, within: Box) -> None:
    """Draw a straight piece of rib on either side."""
    for side in (-1, 1):
        ends = [(side * right, front, up) for right, front, up in line]
        box = raster.around(frame, ends[0], ends[1], radius)
        if box is None:
            continue
        box = overlap(box, within)
        rib = capsule(raster.local(frame, box), ends[0], ends[1], radius)
        out[box][rib & (out[box] != Tissue.AIR)] = Tissue.OTHER_BONE


def _vessels(
    rng: np.random.Generator,
    out: Tissues,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    z: Floats,
    spine_y: Floats,
    at: Heights,
    scale: float,
) -> None:
    """Draw aorta (left) and vena cava (right) in front of the bodies."""
    ahead = np.interp(z, [at.sacrum, at.diaphragm, at.first_rib], [60, 50, 45]) * scale
    (wide, narrow), divides = _AORTA_MM
    radius = _slices(np.where(z > at.diaphragm, wide, narrow) * scale)
    for side, low, high in (
        (-1, at.sacrum + divides * scale, at.first_rib - 40),
        (1, at.sacrum + 20, at.diaphragm + 20),
    ):
        center = side * (11 + 4 * rng.random()), _slices(spine_y + ahead)
        tube = ((x - center[0]) / radius) ** 2 + ((y - center[1]) / radius) ** 2
        out[(tube < 1) & ((z > low) & (z < high))[None, None, :] & (out != Tissue.AIR)] = Tissue.VESSEL


def _pelvis(
    out: Tissues,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    z: Floats,
    spine_y: Floats,
    at: Heights,
    scale: float,
) -> None:
    """Draw the iliac wings beside the sacrum."""
    height = (z - at.sacrum).astype(np.float32)[None, None, :]
    side = np.abs(x) - (58 - 0.15 * np.abs(height)) * scale
    ahead = y - spine_y.astype(np.float32)[None, None, :]
    wing = (np.abs(side - 0.5 * np.clip(ahead, 0, 60)) < 8) & (ahead > -20) & (ahead < 70)
    out[wing & (height < 22) & (height > -70) & (out != Tissue.AIR)] = Tissue.OTHER_BONE


def _rectum(rng: np.random.Generator, out: Tissues, column: BentColumn, raster: Raster) -> None:
    """Draw the rectum in front of the sacrum: stool or gas in a wall, with some fat between it and the bone."""
    radius = float(rng.uniform(*_RECTUM_MM))
    content = Tissue(int(rng.choice((Tissue.AIR, Tissue.ORGAN_A, Tissue.ORGAN_C))))
    away = radius + rng.uniform(4, 14)
    points = [s.frame.point(0, s.depth / 2 + away, 0) for s in column.sacrum]
    for tissue, size in ((Tissue.MUSCLE, radius), (content, radius - 2.5)):
        for upper, lower in itertools.pairwise(points):
            ends = [(float(p[0]), float(p[1]), float(p[2])) for p in (upper, lower)]
            box = raster.around(WORLD, upper, lower, size)
            if box is not None:
                out[box][capsule(raster.local(WORLD, box), ends[0], ends[1], size) & (out[box] != 0)] = tissue
