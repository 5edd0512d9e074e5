"""Bend a column: draw the position, rotation and size of each vertebra."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from totalspineseg_server import anatomy
from totalspineseg_server.synthesis import morphometry as mm
from totalspineseg_server.synthesis.morphometry import LevelSize

_LUMBAR_SHARE = (0.10, 0.14, 0.19, 0.24, 0.33)
"""Share of each segment L1-L2 .. L5-S in the lumbar lordosis, rising downward. The lowest disc is a wedge: 11.2 mm
(3.2) high in front and 6.8 mm (2.7) behind in 25 patients of the SPIDER data set."""
_SACRAL_KYPHOSIS_DEG = 62.0
"""Angle by which the sacrum turns from S1 to S5."""
_CRUSH_ODDS, _CRUSH = 0.05, (0.15, 0.5)
"""Odds of a compression fracture per vertebra at the highest age, and the front height it loses. Source: morphometric
prevalence in the elderly, 15 to 25 % of persons (Schousboe, J Clin Densitom 19(1), 2016), divided among the levels."""
_LIP = 0.16
"""Largest osteophyte at the rim of an endplate, as a share of the body's half width."""
_SLIP_ODDS, _SLIP_SHARE, _SLIP_BACK = {"cervical": 0.03, "thoracic": 0.0, "lumbar": 0.05}, (0.08, 0.3), 0.25
"""Odds that a vertebra has slipped on the one below, its slip relative to its depth, and the share that slips backward.
Source: lumbar slips in 6 to 14 % of adults (Kalichman et al., Spine 34(2), 2009), most of the first grade."""
_SACRALIZED_ODDS, _SACRALIZED = 0.04, {"disc_height": 0.4, "transverse_width": 1.25}
"""Odds that the lowest vertebra has grown toward the sacrum, and how that changes its measures. It keeps its name."""
_LUMBARIZED_ODDS, _LUMBARIZED_MM = 0.04, (4.5, 8.0)
"""Odds that the first sacral disc is as large as a lumbar one, and its height. Source of both odds: transitional
vertebrae in 12 % of people (Bron et al., Acta Orthop Belg 73(6), 2007). It stays part of the sacrum."""
_SACRAL_DISCS_MM = ((0.8, 5.0), (0.5, 3.5), (0.0, 2.0), (0.0, 1.5))
"""Height of the rudimentary discs S1-S2 .. S4-S5; visible on scans of adults of all ages."""


@dataclass(frozen=True)
class Frame:
    """A position and a rotation.

    Attributes:
        origin: Middle of the part, mm, RAS.
        axes: Its columns are the right, anterior and superior unit vectors.
    """

    origin: NDArray[np.float64]
    axes: NDArray[np.float64]

    def point(self, right: float, anterior: float, superior: float) -> NDArray[np.float64]:
        """Return a point of the frame in RAS mm."""
        return np.asarray(self.origin + self.axes @ np.array([right, anterior, superior]), dtype=np.float64)


@dataclass(frozen=True)
class Vertebra:
    """One vertebra in place, with the disc below it.

    Attributes:
        code: Output code.
        region: "cervical", "thoracic" or "lumbar".
        frame: Frame at the middle of its body.
        size: Its measures in mm.
        wedge: Tangent of the angle by which each endplate opens to the front.
        disc: Code of the disc below, None for C1.
        disc_frame: Frame at the middle of that disc.
        index: Position in the column, counted from C1 = 0.
        lip: Osteophytes at the endplates, as a share of the body's half width; 0 in the young.
    """

    code: int
    region: str
    frame: Frame
    size: LevelSize
    wedge: float
    disc: int | None
    disc_frame: Frame
    index: int
    lip: float = 0.0


@dataclass(frozen=True)
class Segment:
    """One sacral segment (S1 .. S5).

    Attributes:
        frame: Frame at its middle.
        height: Height, mm.
        depth: Depth, mm.
        width: Width with the alae, mm.
        gap: Height of the rudimentary disc below it, mm; 0 for the last.
    """

    frame: Frame
    height: float
    depth: float
    width: float
    gap: float


@dataclass(frozen=True)
class BentColumn:
    """All vertebrae superior to inferior, then the sacral segments."""

    vertebrae: tuple[Vertebra, ...]
    sacrum: tuple[Segment, ...]
    name: str
    scale: float


def _axes(tilt_deg: float, side_deg: float, turn_deg: float) -> NDArray[np.float64]:
    """Return axes that lean forward by ``tilt_deg`` and to the right by ``side_deg``, turned about the long axis."""
    t, s, r = np.deg2rad([tilt_deg, side_deg, turn_deg])
    tilt = np.array([[1, 0, 0], [0, np.cos(t), np.sin(t)], [0, -np.sin(t), np.cos(t)]])
    side = np.array([[np.cos(s), 0, np.sin(s)], [0, 1, 0], [-np.sin(s), 0, np.cos(s)]])
    turn = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return np.asarray(side @ tilt @ turn, dtype=np.float64)


def _vary(rng: np.random.Generator, size: LevelSize, scale: float, jitter: float, degenerate: float) -> LevelSize:
    """Return the sizes of an individual: scaled as a whole, varied a little from level to level, with lost disc
    height."""
    fields = {
        name: value * (scale if name != "spinous_slope" else 1.0) * (1 + jitter * 0.05 * rng.standard_normal())
        for name, value in vars(size).items()
        if name != "pedicle_width"
    }
    fields["pedicle_width"] = size.pedicle_width * fields["width"] / size.width
    fields["disc_height"] *= 1.0 - degenerate
    fields["spinous_length"] *= 1 + jitter * 0.1 * rng.standard_normal()
    return replace(size, **fields)


def _crushed(rng: np.random.Generator, sizes: list[LevelSize], age: float) -> tuple[list[LevelSize], list[float]]:
    """Return sizes with the compression fractures of an age, and how far each front edge sank, mm (0: intact)."""
    broken = [i > 7 and rng.random() < _CRUSH_ODDS * age for i in range(len(sizes))]  # The neck is spared.
    sunk = [float(rng.uniform(*_CRUSH)) * s.height if b else 0.0 for s, b in zip(sizes, broken, strict=True)]
    return [replace(s, height=s.height - d / 2) for s, d in zip(sizes, sunk, strict=True)], sunk


def _sacralized(rng: np.random.Generator, sizes: list[LevelSize], jitter: float) -> list[LevelSize]:
    """Return sizes in which, in a few people, the lowest vertebra has a narrow disc and wide transverse processes."""
    if rng.random() >= _SACRALIZED_ODDS * min(jitter, 1.0):
        return sizes
    grown = {name: getattr(sizes[-1], name) * factor for name, factor in _SACRALIZED.items()}
    return [*sizes[:-1], replace(sizes[-1], **grown)]


def _slips(rng: np.random.Generator, regions: list[str], sizes: list[LevelSize], jitter: float) -> list[float]:
    """Return how far each vertebra has slipped forward on the one below, mm; mostly 0, and always for the first two."""
    slips = []
    for i, (region, size) in enumerate(zip(regions, sizes, strict=True)):
        slipped, back = rng.random() < _SLIP_ODDS[region] * min(jitter, 1.0), rng.random() < _SLIP_BACK
        far = float(rng.uniform(*_SLIP_SHARE)) * size.depth * (-0.5 if back else 1.0)
        slips.append(far if slipped and i > 1 else 0.0)
    return slips


def _tilts(rng: np.random.Generator, counts: tuple[int, int, int], jitter: float) -> NDArray[np.float64]:
    """Return the forward tilt in degrees of S1's endplate, then of each vertebra from the lowest to C1."""

    def draw(mean_spread: tuple[float, float]) -> float:
        return float(mean_spread[0] + jitter * mean_spread[1] * rng.standard_normal())

    slope, lordosis = draw(mm.SACRAL_SLOPE_DEG), draw(mm.LUMBAR_LORDOSIS_DEG)
    kyphosis, neck = draw(mm.THORACIC_KYPHOSIS_DEG), draw(mm.CERVICAL_LORDOSIS_DEG)
    lordosis = float(np.clip(lordosis, slope - 8, slope + 25))
    cervical, thoracic, lumbar = counts
    share = np.interp(np.linspace(0, 1, lumbar), np.linspace(0, 1, 5), _LUMBAR_SHARE)[::-1]
    tilts = [slope, *(slope - lordosis * np.cumsum(share / share.sum()))]
    bell = 0.35 + np.sin(np.linspace(0.1, np.pi - 0.1, thoracic))
    tilts += list(tilts[-1] + kyphosis * np.cumsum(bell / bell.sum()))
    tilts += list(tilts[-1] - neck * np.arange(1, cervical) / (cervical - 2))
    return np.asarray([*tilts, 0.4 * tilts[-1]])


def _lean(tilts: NDArray[np.float64], sizes: list[LevelSize]) -> float:
    """Return how far C1 leans forward over the sacrum, in degrees; a standing body balances this."""
    lengths = np.array([s.height + s.disc_height for s in reversed(sizes)])
    angles = np.deg2rad(tilts[1:])
    return float(np.rad2deg(np.arctan2((lengths * np.sin(angles)).sum(), (lengths * np.cos(angles)).sum())))


def bend_column(rng: np.random.Generator, thoracic: int, lumbar: int, jitter: float) -> BentColumn:
    """Draw an individual's column; the middle of S1's upper endplate is the origin.

    Args:
        rng: Source of randomness.
        thoracic: Number of thoracic vertebrae.
        lumbar: Number of lumbar vertebrae.
        jitter: Strength of the variation.

    Returns:
        The column in RAS mm.
    """
    plan = anatomy.column(thoracic, lumbar)
    counts = (len(anatomy.CERVICAL), thoracic, lumbar)
    scale = float(np.clip(1 + jitter * 0.09 * rng.standard_normal(), 0.75, 1.25))
    age = float(rng.random() ** 2) * min(jitter, 1.0)
    regions = [r for r, n in zip(mm.REGIONS, counts, strict=True) for _ in range(n)]
    sizes = [s for r, n in zip(mm.REGIONS, counts, strict=True) for s in mm.level_sizes(r, n)]
    # Discs lose height with age: Brinjikji et al., AJNR 36(4), 2015, 811-816 (37 % of people at 20, 96 % at 80).
    loss = np.clip(age * 0.5 * rng.random(len(sizes)) + (rng.random(len(sizes)) < 0.15 * age) * 0.4, 0, 0.75)
    sizes = [_vary(rng, s, scale, jitter, float(d)) for s, d in zip(sizes, loss, strict=True)]
    ageing = rng.spawn(1)[0]  # a stream of its own, so that earlier draws of a seed stay the same
    sizes, sunk = _crushed(ageing, sizes, age)
    lips = _LIP * age * ageing.random(len(sizes))
    sizes = _sacralized(ageing, sizes, jitter)
    slips = _slips(ageing, regions, sizes, jitter)
    total = len(sizes)
    tilts = _tilts(rng, counts, jitter) + np.r_[0.0, jitter * 1.2 * rng.standard_normal(total)]
    tilts -= _lean(tilts, sizes) - jitter * rng.normal(0, 3.5)
    wave = np.linspace(0, rng.uniform(1, 4) * np.pi, total + 1) + rng.uniform(0, 2 * np.pi)
    # Mild, marked in a tenth; prevalence in adults: McAviney et al., Eur Spine J 29, 2020, 2960-2969.
    scoliosis = jitter * abs(rng.normal(0, 3.0)) * (3.0 if rng.random() < 0.1 else 1.0)
    sides = scoliosis * np.sin(wave) + jitter * rng.normal(0, 2.0)
    rotations = 0.7 * scoliosis * np.cos(wave)
    vertebrae: list[Vertebra] = []
    cursor = np.zeros(3)
    for step in range(1, total + 1):  # Go from the lowest vertebra up to C1.
        i = total - step
        size = sizes[i]
        disc_axes = _axes(*(0.5 * (a[step - 1] + a[step]) for a in (tilts, sides, rotations)))
        axes = _axes(tilts[step], sides[step], rotations[step])
        gap = size.disc_height if plan.discs[i] is not None else 0.0
        disc_frame = Frame(cursor + disc_axes[:, 2] * gap / 2, disc_axes)
        origin = cursor + disc_axes[:, 2] * gap + axes[:, 2] * size.height / 2
        if i == 0:  # C1 sits on the shoulders of C2, around the dens.
            origin = cursor + axes[:, 2] * size.height * 0.65
        disc_frame = Frame(disc_frame.origin + axes[:, 1] * slips[i] / 2, disc_axes)
        origin = origin + axes[:, 1] * slips[i]  # The vertebrae above move with it.
        cursor = origin + axes[:, 2] * size.height / 2
        below = tilts[step - 1] - tilts[step]
        wedge = float(np.tan(np.deg2rad(np.clip(0.25 * below, -6, 6)))) - sunk[i] / (2 * size.depth)
        frame, lip = Frame(origin, axes), float(lips[i])
        vertebrae.append(Vertebra(plan.vertebrae[i], regions[i], frame, size, wedge, plan.discs[i], disc_frame, i, lip))
    sacrum = _sacrum(rng, tilts[0], sides[0], scale, jitter)
    return BentColumn(tuple(reversed(vertebrae)), sacrum, plan.name, scale)


def _sacrum(rng: np.random.Generator, slope: float, side: float, scale: float, jitter: float) -> tuple[Segment, ...]:
    """Return S1 .. S5 going down from the origin, curving backward and then forward again."""
    turn = _SACRAL_KYPHOSIS_DEG * (1 + jitter * 0.2 * rng.standard_normal())
    steps = slope + 8.0 - turn * np.array([0.0, 0.10, 0.30, 0.65, 1.0])
    cursor, segments = np.zeros(3), []
    size = scale * (1 + jitter * 0.05 * rng.standard_normal())
    gaps = _sacral_gaps(rng.spawn(1)[0], jitter)
    for tilt, h, d, w, gap in zip(
        steps, mm.SACRAL_HEIGHTS, mm.SACRAL_DEPTHS, mm.SACRAL_WIDTHS, (*gaps, 0.0), strict=True
    ):
        axes = _axes(float(tilt), side, 0.0)
        height = h * size
        segments.append(Segment(Frame(cursor - axes[:, 2] * height / 2, axes), height, d * size, w * size, gap * size))
        cursor = cursor - axes[:, 2] * height
    return tuple(segments)


def _sacral_gaps(rng: np.random.Generator, jitter: float) -> list[float]:
    """Return the heights of an individual's rudimentary discs, mm."""
    gaps = [0.5 * (low + high) + jitter * rng.uniform(-0.5, 0.5) * (high - low) for low, high in _SACRAL_DISCS_MM]
    if rng.random() < _LUMBARIZED_ODDS * min(jitter, 1.0):
        gaps[0] = float(rng.uniform(*_LUMBARIZED_MM))
    return [max(0.0, float(gap)) for gap in gaps]
