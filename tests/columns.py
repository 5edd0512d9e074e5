# ruff: noqa: B023 - the shapes are drawn at once, inside the loop that defines their sizes
"""Draw synthetic columns with known truth and the mistakes of networks, for the numbering tests.

Geometry is plain (elliptic bodies and discs, arches, processes, a tapering sacrum along a curved canal); what matters
is that names, neighbors, spacing and classes are those of a column, and that each mistake can be switched on.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import (
    C1,
    CANAL,
    CORD,
    DISC_CLASSES,
    DISCS,
    LANDMARK_CLASS,
    LUMBAR,
    SACRUM,
    STEP1_FROM_CODE,
    STEP2_FROM_CODE,
    THORACIC,
    VERTEBRAE,
    Step2,
    column,
)
from totalspineseg_server.transforms.pieces import one_spine

Labels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

HEIGHTS = dict.fromkeys(VERTEBRAE[:7], 17.0)
HEIGHTS |= {code: 18.5 + 0.75 * k for k, code in enumerate(THORACIC)}
HEIGHTS |= {code: 29.0 + 1.6 * k for k, code in enumerate(LUMBAR)}
LORDOSIS = (0.95, 0.9, 0.85)
"""Length of the last three lumbar levels along the canal, which runs on the inner side of the lordosis, as a share of
their height."""
FIELDS = {
    "whole": (11, 50),
    "cervical": (11, 22),
    "cervicothoracic": (11, 29),
    "thoracic": (17, 41),
    "midthoracic": (23, 30),
    "thoracolumbar": (26, 50),
    "lumbar": (31, 50),
    "lower lumbar": (42, 50),
}
"""Name of a field of view -> first and last vertebra (50: sacrum) in it; both are cut at random."""


@dataclass
class Level:
    """One structure: where it is and how large."""

    code: int
    center: Floats
    height: float
    width: float


@dataclass
class Case:
    """A raw map with its truth."""

    raw: Labels
    truth: Labels
    step: int
    affine: Floats
    levels: list[Level] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def build(
    rng: np.random.Generator,
    *,
    fov: str = "whole",
    thoracic: int = 12,
    lumbar: int = 5,
    curvature: float = 1.0,
    spacing: float = 1.0,
) -> Case:
    """Return a clean column with its truth in codes; ``raw`` is still empty (see ``classes``)."""
    spine = column(thoracic, lumbar)
    scale = float(np.exp(rng.normal(0, 0.09)))
    heights = [HEIGHTS[c] * scale * float(np.exp(rng.normal(0, 0.04))) for c in spine.vertebrae]
    heights[-len(LORDOSIS) :] = [a * b for a, b in zip(heights[-len(LORDOSIS) :], LORDOSIS, strict=True)]
    starts = np.concatenate([[0.0], np.cumsum(heights)])
    first, last = FIELDS[fov]
    order = list(spine.vertebrae)
    top = order.index(first if first in order else order[-1] if first > 40 else order[order.index(41) - 1])
    bottom = len(order) if last == SACRUM else order.index(last if last in order else order[order.index(41) - 1])
    above = starts[top] + rng.uniform(-0.1, 0.8) * heights[top] if top else -12.0
    below = (
        starts[-1] + rng.uniform(50, 80)
        if bottom == len(order)
        else starts[bottom] + rng.uniform(0.1, 0.95) * heights[bottom]
    )
    line = _Line(starts[-1] + 110, above, below, curvature, rng)
    return _paint(spine, heights, starts, line, rng, spacing)


@cache
def _built(seed: int, options: tuple[tuple[str, Any], ...]) -> tuple[Case, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return build(rng, **dict(options)), rng


def built(seed: int, **options: Any) -> tuple[Case, np.random.Generator]:
    """Return the clean column of a seed, and the generator with the random numbers that follow.

    Tests share columns, because painting them takes much of their time; each gets copies.

    Args:
        seed: Seed.
        **options: As of ``build``.
    """
    return deepcopy(_built(seed, tuple(sorted(options.items()))))


class _Line:
    """The canal: arc length from the top of C1 -> point, tangent (superior) and anterior direction."""

    def __init__(self, length: float, above: float, below: float, curvature: float, rng: np.random.Generator) -> None:
        s = np.arange(-20.0, length)
        relative = s / length
        lean = np.interp(
            relative, [-0.1, 0.05, 0.22, 0.45, 0.62, 0.75, 0.86, 1.0], [0.0, 0.1, -0.32, -0.1, 0.3, 0.25, -0.25, -0.9]
        )
        side = 0.10 * (curvature - 1) * np.sin(2 * np.pi * (relative * rng.uniform(0.8, 1.6) + rng.uniform()))
        lean = np.convolve(np.pad(lean * curvature, 15, mode="edge"), np.ones(31) / 31, "valid")
        tangent = np.stack([np.sin(side), -np.sin(lean), -np.cos(lean)], axis=1)
        tangent /= np.linalg.norm(tangent, axis=1)[:, None]
        self.s = s
        self.points = np.cumsum(tangent, axis=0)
        self.tangent = -tangent
        self.top, self.bottom = np.interp(above, s, self.points[:, 2]), np.interp(below, s, self.points[:, 2])

    def at(self, s: float) -> tuple[Floats, Floats, Floats, Floats]:
        k = int(np.clip(np.searchsorted(self.s, s), 0, len(self.s) - 1))
        up = self.tangent[k]
        right = np.array([1.0, 0.0, 0.0]) - up[0] * up
        right /= np.linalg.norm(right)
        return self.points[k], up, np.cross(up, right), right


Shape = Callable[[Floats, Floats, Floats], npt.NDArray[np.bool_]]


class _Canvas:
    def __init__(self, low: Floats, high: Floats, spacing: float) -> None:
        self.low, self.spacing = low, spacing
        self.truth = np.zeros(np.ceil((high - low) / spacing).astype(int), dtype=np.uint8)

    def draw(
        self, code: int, frame: tuple[Floats, Floats, Floats, Floats], reach: float, shape: Shape, over: bool = False
    ) -> None:
        origin, up, front, right = frame
        low = np.maximum(np.floor((origin - reach - self.low) / self.spacing).astype(int), 0)
        high = np.minimum(np.ceil((origin + reach - self.low) / self.spacing).astype(int), self.truth.shape)
        if np.any(high <= low):
            return
        axes = [np.arange(a, b) * self.spacing + o - c for a, b, o, c in zip(low, high, self.low, origin, strict=True)]
        x, y, z = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
        lateral, anterior, superior = (x * d[0] + y * d[1] + z * d[2] for d in (right, front, up))
        part = self.truth[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        mask = shape(lateral, anterior, superior)
        part[mask if over else mask & (part == 0)] = code


def _width(place: float) -> float:
    return float(np.interp(place, [1, 6, 18, 23], [25.0, 27.0, 39.0, 46.0]))


def _paint(spine, heights, starts, line: _Line, rng: np.random.Generator, spacing: float) -> Case:  # type: ignore[no-untyped-def]
    inside = (line.points[:, 2] <= line.top + 15) & (line.points[:, 2] >= line.bottom - 15)
    points = line.points[inside]
    low = np.array([points[:, 0].min() - 40, points[:, 1].min() - 46, line.bottom])
    high = np.array([points[:, 0].max() + 40, points[:, 1].max() + 52, line.top])
    canvas = _Canvas(low, high, spacing)
    levels: list[Level] = []
    z_of = lambda s: float(np.interp(s, line.s, line.points[:, 2]))  # noqa: E731
    for s in np.arange(-18, starts[-1] + 60, 3.0):
        if line.bottom - 12 <= z_of(s) <= line.top + 12:
            cord = s < starts[spine.vertebrae.index(41)] + 10
            frame = line.at(s)
            if cord:
                canvas.draw(CORD, frame, 9, lambda x, y, z: ((x / 6) ** 2 + (y / 4) ** 2 < 1) & (np.abs(z) <= 2.6))
            canvas.draw(CANAL, frame, 12, lambda x, y, z: ((x / 10) ** 2 + (y / 7.5) ** 2 < 1) & (np.abs(z) <= 2.6))
    for k, (vertebra, disc, height) in enumerate(zip(spine.vertebrae, spine.discs, heights, strict=True)):
        thick = float(np.clip(0.22 * height, 3.5, 11)) if disc is not None else 3.0
        width = _width(k) * float(np.exp(rng.normal(0, 0.03)))
        depth = 0.36 * width
        middle = starts[k] + height / 2
        origin, up, front, right = line.at(middle)
        body = (origin + front * (9 + depth), up, front, right)
        half = (height - thick) / 2 - 0.6
        if vertebra == C1:
            canvas.draw(
                C1,
                (origin, up, front, right),
                36,
                lambda x, y, z: (
                    (np.abs(z) < 5.5)
                    & (((x / 15) ** 2 + (y / 15) ** 2 < 1) | ((np.abs(x) < 31) & (np.abs(y) < 5)))
                    & ((x / 10.5) ** 2 + (y / 8) ** 2 > 1)
                ),
            )
        else:
            if vertebra == 12:
                canvas.draw(
                    12,
                    (body[0] + up * height * 0.5, up, front, right),
                    25,
                    lambda x, y, z: ((x / 5) ** 2 + (y / 5) ** 2 < 1) & (np.abs(z) < height * 0.6),
                )
            canvas.draw(
                vertebra,
                body,
                width / 2 + 12,
                lambda x, y, z: ((2 * x / width) ** 2 + (y / depth) ** 2 < 1) & (np.abs(z) < half),
            )
            slope = 0.9 if 22 <= vertebra <= 30 else 0.35
            long = 24 if vertebra < 20 else 30
            canvas.draw(
                vertebra,
                (origin, up, front, right),
                48,
                lambda x, y, z: (
                    (np.abs(z) < 0.33 * height)
                    & ((x / 15) ** 2 + (y / 12) ** 2 < 1)
                    & ((x / 10.5) ** 2 + (y / 8) ** 2 > 1)
                ),
            )
            canvas.draw(
                vertebra,
                (origin, up, front, right),
                48,
                lambda x, y, z: (
                    (np.abs(x) < 3) & (y < -8) & (y > -8 - long) & (np.abs(z - slope * (y + 8)) < 0.26 * height)
                ),
            )
            canvas.draw(
                vertebra,
                (origin, up, front, right),
                48,
                lambda x, y, z: (np.abs(x) > 9) & (np.abs(x) < 15 + width / 3) & (np.abs(y + 3) < 4) & (np.abs(z) < 4),
            )
        if disc is not None:
            frame = line.at(starts[k + 1])
            center = frame[0] + frame[2] * (9 + depth)
            canvas.draw(
                disc,
                (center, *frame[1:]),
                width / 2 + 8,
                lambda x, y, z: ((2 * x / width) ** 2 + (y / depth) ** 2 < 1) & (np.abs(z) < thick / 2),
            )
            levels.append(Level(disc, center, height, width))
        levels.append(Level(vertebra, body[0], height, width))
    for s in np.arange(starts[-1] + 7, starts[-1] + 95, 4.0):
        taper = float(np.interp(s - starts[-1], [0, 95], [46, 14]))
        frame = line.at(s)
        canvas.draw(
            SACRUM,
            (frame[0] + frame[2] * (9 + 0.3 * taper), *frame[1:]),
            48,
            lambda x, y, z: ((x / taper * 1.6) ** 2 + (y / taper / 0.3) ** 2 < 1) & (np.abs(z) <= 3),
        )
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = low
    return Case(np.zeros_like(canvas.truth), canvas.truth, 0, affine, levels)


def classes(case: Case, step: int, *, swapped: bool = False) -> Case:
    """Return the case with the raw map of a perfect network."""
    table = np.zeros(256, dtype=np.uint8)
    for code, value in (STEP1_FROM_CODE if step == 1 else STEP2_FROM_CODE).items():
        table[code] = value
    if swapped and step == 2:
        table[list(STEP2_FROM_CODE)] = [{7: 8, 8: 7}.get(v, v) for v in STEP2_FROM_CODE.values()]
    return Case(table[case.truth], case.truth, step, case.affine, case.levels, list(case.notes))


def present(case: Case, codes: Sequence[int], least: int = 300) -> list[int]:
    """Return the codes with enough voxels (mm3) in view, in anatomical order."""
    counts = np.bincount(case.truth.ravel(), minlength=256) * case.affine[0, 0] ** 3
    return [c for c in codes if counts[c] >= least]


def _index(case: Case, point: Floats) -> Floats:
    return (point - case.affine[:3, 3]) / case.affine[0, 0]


def _ball(case: Case, point: Floats, radii: Sequence[float]) -> tuple[tuple[slice, ...], npt.NDArray[np.bool_]]:
    center = _index(case, point)
    radius = np.asarray(radii) / case.affine[0, 0]
    low = np.clip(np.floor(center - radius).astype(int), 0, np.array(case.raw.shape))
    high = np.clip(np.ceil(center + radius).astype(int) + 1, 0, np.array(case.raw.shape))
    grid = np.meshgrid(
        *[(np.arange(a, b) - c) / r for a, b, c, r in zip(low, high, center, radius, strict=True)], indexing="ij"
    )
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True)), sum(g**2 for g in grid) < 1


def _level(case: Case, code: int) -> Level:
    return next(level for level in case.levels if level.code == code)


def _inner(codes: list[int]) -> list[int]:
    return codes[1:-1] if len(codes) > 3 else codes


# Each mistake changes ``case.raw`` in place and returns whether it applied.
def missed_disc(case: Case, rng: np.random.Generator) -> bool:
    codes = _inner(present(case, DISCS))
    if len(codes) < 2:
        return False
    case.raw[case.truth == rng.choice(codes)] = 0
    return True


def split_disc(case: Case, rng: np.random.Generator) -> bool:
    code = int(rng.choice(_inner(present(case, DISCS))))
    x = np.argwhere(case.truth == code)
    axis = int(rng.integers(2))
    cut = int(np.median(x[:, axis])) + int(rng.integers(-3, 4))
    slab = [slice(None)] * 3
    slab[axis] = slice(cut - 2, cut + 2)
    case.raw[tuple(slab)][case.truth[tuple(slab)] == code] = 0
    return True


def merged_discs(case: Case, rng: np.random.Generator) -> bool:
    codes = present(case, DISCS)
    if len(codes) < 3:
        return False
    k = int(rng.integers(len(codes) - 1))
    a, b = _level(case, codes[k]), _level(case, codes[k + 1])
    for t in np.linspace(0, 1, 25):
        box, ball = _ball(case, a.center * (1 - t) + b.center * t, [4, 4, 4])
        case.raw[box][ball & (case.raw[box] != 0)] = 1
    return True


def false_disc(case: Case, rng: np.random.Generator) -> bool:
    code = int(rng.choice(present(case, [c for c in VERTEBRAE if c > C1], 3000)))
    level = _level(case, code)
    box, ball = _ball(case, level.center + rng.uniform(-2, 2, 3), [rng.uniform(5, level.width / 2.2), 7, 2.5])
    mask = ball & (case.truth[box] == code)
    case.raw[box][mask] = 1
    return bool(mask.sum() > 30)


def spinous_only(case: Case, rng: np.random.Generator) -> bool:
    if case.step != 2:
        return False
    code = int(rng.choice(_inner(present(case, [c for c in VERTEBRAE if c > 12], 3000))))
    level = _level(case, code)
    box, ball = _ball(case, level.center, [level.width * 0.75, level.width * 0.5, level.height])
    case.raw[box][ball & (case.truth[box] == code)] = 0
    return True


def missed_vertebra(case: Case, rng: np.random.Generator) -> bool:
    if case.step != 2:
        return False
    code = int(rng.choice(_inner(present(case, [c for c in VERTEBRAE if c > 12], 3000))))
    case.raw[case.truth == code] = 0
    return True


def flipped_parity(case: Case, rng: np.random.Generator) -> bool:
    if case.step != 2:
        return False
    code = int(rng.choice(present(case, VERTEBRAE, 1500)))
    mask = case.truth == code
    odd, even = Step2.VERTEBRA_ODD.value, Step2.VERTEBRA_EVEN.value
    values = case.raw[mask]
    case.raw[mask] = np.where(values == odd, even, np.where(values == even, odd, values))
    return True


def _seen_landmarks(case: Case) -> list[tuple[int, int]]:
    return [(value, code) for value, code in LANDMARK_CLASS.items() if code in present(case, DISCS)]


def _landmark_and_neighbor(case: Case, rng: np.random.Generator) -> tuple[int, int, int] | None:
    """Return class and code of a landmark disc, and the code of a disc beside it that is none."""
    seen = _seen_landmarks(case)
    if not seen:
        return None
    value, code = seen[int(rng.integers(len(seen)))]
    codes = [c for level in case.levels if (c := level.code) in present(case, DISCS)]
    near = [k for k in (codes.index(code) - 1, codes.index(code) + 1) if 0 <= k < len(codes)]
    other = codes[int(rng.choice(near))]
    return None if other in LANDMARK_CLASS.values() else (value, code, other)


def moved_landmark(case: Case, rng: np.random.Generator) -> bool:
    chosen = _landmark_and_neighbor(case, rng)
    if chosen is None:
        return False
    value, code, other = chosen
    case.raw[(case.truth == code) & np.isin(case.raw, DISC_CLASSES)] = 1
    case.raw[(case.truth == other) & np.isin(case.raw, DISC_CLASSES)] = value
    return True


def spread_landmark(case: Case, rng: np.random.Generator) -> bool:
    chosen = _landmark_and_neighbor(case, rng)
    if chosen is None:
        return False
    value, code, other = chosen
    share = rng.uniform(0.25, 0.6)
    for which, give, fraction in ((code, 1, share), (other, value, rng.uniform(0.3, 0.7))):
        mask = (case.truth == which) & np.isin(case.raw, DISC_CLASSES)
        if not mask.any():
            return False
        z = np.argwhere(mask)[:, 0]
        limit = np.quantile(z, fraction)
        part = mask & (np.arange(case.raw.shape[0])[:, None, None] <= limit)
        case.raw[part] = give
    return True


def lost_landmark(case: Case, rng: np.random.Generator) -> bool:
    seen = _seen_landmarks(case)
    if not seen:
        return False
    value, _ = seen[int(rng.integers(len(seen)))]
    case.raw[case.raw == value] = 1
    return True


def specks(case: Case, rng: np.random.Generator) -> bool:
    values = [1, 1, 6] if case.step == 1 else [1, 1, 7, 8]
    spine = np.argwhere(case.truth[::4, ::4, ::4] > 2) * 4
    for _ in range(int(rng.integers(3, 9))):
        point = spine[rng.integers(len(spine))] * case.affine[0, 0] + case.affine[:3, 3] + rng.normal(0, 4, 3)
        box, ball = _ball(case, point, rng.uniform(1.2, 3.2, 3))
        case.raw[box][ball] = int(rng.choice(values))
    return True


def remnants(case: Case, rng: np.random.Generator) -> bool:
    if case.step != 2:
        return False
    spine = np.argwhere(np.isin(case.truth[::4, ::4, ::4], VERTEBRAE)) * 4
    for _ in range(15):
        point = spine[rng.integers(len(spine))] * case.affine[0, 0] + case.affine[:3, 3]
        box, ball = _ball(case, point, rng.uniform(2, 6, 3))
        case.raw[box][ball & np.isin(case.raw[box], (7, 8))] = 6
    return True


def plain_vertebra(case: Case, rng: np.random.Generator) -> bool:
    """Give a whole vertebra no odd/even class."""
    if case.step != 2:
        return False
    code = int(rng.choice(_inner(present(case, [c for c in VERTEBRAE if c > 12], 3000))))
    case.raw[case.truth == code] = Step2.VERTEBRA.value
    return True


def false_sacrum(case: Case, rng: np.random.Generator) -> bool:
    """Draw part of a vertebra as the sacrum."""
    if case.step != 2:
        return False
    code = int(rng.choice(present(case, [c for c in VERTEBRAE if c > 12], 3000)))
    level = _level(case, code)
    box, ball = _ball(case, level.center, rng.uniform(4, 9, 3))
    case.raw[box][ball & (case.truth[box] == code)] = Step2.SACRUM.value
    return True


def void(case: Case, rng: np.random.Generator) -> bool:
    """Hide one to three vertebrae and the discs around them behind metal, in half of the cases the canal, too."""
    codes = _inner(present(case, [c for c in VERTEBRAE if c > 12], 3000))
    count = int(rng.integers(1, 4))
    if len(codes) < count + 2:
        return False
    first = int(rng.integers(1, len(codes) - count))
    z = np.argwhere(np.isin(case.truth, codes[first : first + count]))[:, 2]
    low, high = (int(np.quantile(z, q)) for q in (0.05, 0.95))
    hidden = case.raw[:, :, low:high]
    hidden[(case.truth[:, :, low:high] > CANAL) | (rng.random() < 0.5)] = 0
    return True


def ragged(case: Case, rng: np.random.Generator) -> bool:
    for axis in range(3):
        swap = rng.random(case.raw.shape) < 0.12
        rolled = np.roll(case.raw, int(rng.choice([-1, 1])), axis=axis)
        keep = np.ones(case.raw.shape[axis], dtype=bool)
        keep[[0, -1]] = False
        shape = [1, 1, 1]
        shape[axis] = -1
        np.copyto(case.raw, rolled, where=swap & keep.reshape(shape))
    return True


Mistake = Callable[[Case, np.random.Generator], bool]
MISTAKES: dict[str, Mistake] = {
    f.__name__.replace("_", " "): f
    for f in (
        missed_disc,
        split_disc,
        merged_discs,
        false_disc,
        spinous_only,
        missed_vertebra,
        flipped_parity,
        moved_landmark,
        spread_landmark,
        lost_landmark,
        specks,
        remnants,
        plain_vertebra,
        false_sacrum,
        void,
        ragged,
    )
}
VARIANTS = {"normal": (12, 5), "T11": (11, 5), "T13": (13, 5), "L4": (12, 4), "L6": (12, 6)}


def errors(case: Case, labels: Labels) -> dict[int, int]:
    """Return the levels with a wrong name: true code -> code of most of its segmented voxels. A structure counts if at
    least 300 mm3 of it are in view, and if at least a tenth of it was drawn as part of the spine. In step 1 only discs
    and C1 count."""
    wrong: dict[int, int] = {}
    voxel = float(case.affine[0, 0]) ** 3
    codes = DISCS if case.step == 1 else (*DISCS, *VERTEBRAE, SACRUM)
    flat = np.flatnonzero(case.truth > CANAL)
    table = np.zeros((256, 256), dtype=np.int64)
    segmented = one_spine(case.raw, case.step).ravel()[flat] > 0
    np.add.at(table, (case.truth.ravel()[flat[segmented]], labels.ravel()[flat[segmented]]), 1)
    whole = np.bincount(case.truth.ravel(), minlength=256)
    for code in codes:
        count = table[code].sum()
        if whole[code] * voxel < 300 or count < 0.1 * whole[code]:
            continue
        got = int(table[code].argmax())
        if got != code:
            wrong[code] = got
    return wrong


def judged(case: Case) -> int:
    """Return how many levels ``errors`` checks."""
    voxel = float(case.affine[0, 0]) ** 3
    codes = DISCS if case.step == 1 else (*DISCS, *VERTEBRAE, SACRUM)
    whole = np.bincount(case.truth.ravel(), minlength=256)
    segmented = np.bincount(case.truth[one_spine(case.raw, case.step) > 0].ravel(), minlength=256)
    return sum(whole[c] * voxel >= 300 and segmented[c] >= 0.1 * whole[c] for c in codes)
