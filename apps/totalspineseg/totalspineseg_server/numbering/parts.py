"""Measure the levels of a label map along the canal, and check their order: gaps, neighbors, steps.

A level is a code with its connected parts.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Final

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from totalspineseg_server.anatomy import (
    BY_CODE,
    C1,
    C2,
    CANAL,
    CORD,
    LUMBAR,
    NAME_OF,
    SACRUM,
    THORACIC,
    VERTEBRAE,
    Kind,
    column,
)
from totalspineseg_server.numbering import numbering_messages
from totalspineseg_server.numbering.evidence_weights import ORDER
from totalspineseg_server.numbering.findings import Finding
from totalspineseg_server.numbering.states import HEIGHT_MM
from totalspineseg_server.transforms.canal import Floats, Ruler, ruler_along, ruler_of
from totalspineseg_server.transforms.components import CONNECTIVITY, Box, connected_components

Indices = npt.NDArray[np.intp]

JOIN_VOX: Final = 1
"""Parts that touch after each has grown by a voxel count as one, as in ``find_pieces``."""
BODY_VOXELS: Final = 50
"""Smallest number of voxels in front of the canal that make a body; fewer are the tip of a process."""
MIN_CANAL_SHARE: Final = 0.8
"""Smallest share of the levels along which a canal must be drawn to be used as a ruler for them."""
BODY_SHARE: Final = 0.6
"""If there is no canal, a vertebra that is thinner than this share of the usual thickness in its map shows no body,
because processes and arches are half as thick."""
CORE_SHARE: Final = 0.8
"""Voxels deeper below the surface than this share of the greatest depth are the core of a vertebra, inside its body."""
VERTEBRAE_BELOW_C1: Final = frozenset(VERTEBRAE) - {C1}

SPAN_REST: Final = 0.05
"""Share of a part's voxels that may lie beyond its span at either end."""
SPAN_SAMPLE: Final = 1000
"""Number of voxels that are used to measure a span."""

MIN_STRUCTURE_MM3: Final = 30.0
"""Smallest volume of a level; less is a speck (a disc has over 1000 mm3)."""
WIDE_STEP: Final = 1.6
"""A step from vertebra to vertebra that is longer than its neighbors by this factor skips a vertebra."""
WIDE_STEP_TO_SACRUM: Final = 2.0
"""The same for the step to the sacrum, whose middle is far below its upper end: in 60 synthetic columns it is 1.3 to
1.8 times the steps above it, and 2.2 to 2.8 times if the last lumbar vertebra is taken out."""
APART: Final = 2
"""Number of places from a vertebra to the nearest vertebra that it must not touch."""
NEAR_STEPS: Final = 3
"""Number of steps on either side with which a step is compared."""
MIN_STEPS: Final = 2
"""Smallest number of steps that have a usual length."""


@dataclass(frozen=True)
class Part:
    """A connected part of a code.

    Attributes:
        code: Its code.
        voxels: Number of voxels.
        volume_mm3: Volume.
        center_vox: Center of mass; of a vertebra with a body, that of the body.
        place_mm: Distance along the canal, increasing toward inferior.
        span_mm: Distances along the canal between which nearly all of it lies.
        has_body: Whether it has a body (always true for discs and the sacrum).
        is_cut: Whether the field of view cuts it off.
        depth_mm: Extent from front to back.
        box: Smallest box around it.
    """

    code: int
    voxels: int
    volume_mm3: float
    center_vox: tuple[float, float, float]
    place_mm: float
    span_mm: tuple[float, float]
    has_body: bool
    is_cut: bool
    depth_mm: float
    box: Box


def levels_in(labels: npt.NDArray[np.integer[Any]], spacing_mm: Floats) -> Mapping[int, tuple[Part, ...]]:
    """Measure the parts of every disc, vertebra and the sacrum along the canal or, without one, along their bodies.

    Args:
        labels: Codes (X, Y, Z) nearest RAS; structures that touch the outer faces are cut off by the field of view. Not
            modified.
        spacing_mm: (3,) voxel size.

    Returns:
        Code -> its parts, the largest first; codes that are not levels are left out.
    """
    levels = np.zeros(256, dtype=np.uint8)
    for code, structure in BY_CODE.items():
        if structure.kind not in (Kind.CORD, Kind.CANAL):
            levels[code] = code
    codes = levels[np.clip(labels, 0, 255)] * (labels <= 255)
    groups = {code: _joined(found, labels.shape) for code, found in _groups(codes).items()}
    voxels = {
        # Each coordinate is contiguous, because most work is done along them.
        code: [np.stack(np.unravel_index(group, labels.shape)).T for group in found]
        for code, found in groups.items()
    }
    canal = (labels == CORD) | (labels == CANAL)
    if _runs_along(canal, codes):
        ruler = ruler_of(canal, spacing_mm)
        bodies = {code: [_in_front_of(code, xyz, ruler) for xyz in found] for code, found in voxels.items()}
    else:
        bodies = _cores(voxels, labels.shape, spacing_mm)
        # Where no vertebra has a name, the sacrum's code stands for all of them and has no middle of its own.
        named = [code for code in voxels if code not in (C1, SACRUM) or not VERTEBRAE_BELOW_C1.isdisjoint(voxels)]
        largest = {code: int(np.argmax([len(xyz) for xyz in voxels[code]])) for code in named}
        middles = [body.mean(axis=0) for code in named if (body := bodies[code][largest[code]]) is not None]
        ruler = ruler_along(np.array(middles), spacing_mm)
    return {
        code: tuple(
            sorted(
                (_part(code, xyz, body, labels.shape, ruler) for xyz, body in zip(found, bodies[code], strict=True)),
                key=lambda part: -part.voxels,
            )
        )
        for code, found in voxels.items()
    }


def _runs_along(canal: npt.NDArray[np.bool_], codes: npt.NDArray[np.uint8]) -> bool:
    """Return whether a canal is drawn along most of the levels; it ends within the sacrum."""
    heights = np.flatnonzero(((codes != 0) & (codes != SACRUM)).any(axis=(0, 1)))
    if not heights.size:
        return True
    along = canal[:, :, heights[0] : heights[-1] + 1].any(axis=(0, 1))
    return float(along.mean()) >= MIN_CANAL_SHARE


def _in_front_of(code: int, xyz: Indices, ruler: Ruler) -> Indices | None:
    """Return the voxels of a part that are its body, by the canal; None for a part without a body."""
    if BY_CODE[code].kind is not Kind.VERTEBRA:
        return xyz
    body: Indices = xyz[ruler.in_front(xyz)]
    return body if len(body) >= BODY_VOXELS else None


def _cores(
    voxels: Mapping[int, Sequence[Indices]], shape: tuple[int, ...], spacing_mm: Floats
) -> dict[int, list[Indices | None]]:
    """Return the core of each vertebra if there is no canal: the body is its thickest part."""
    found = {code: [_core(code, xyz, shape, spacing_mm) for xyz in parts] for code, parts in voxels.items()}
    thickest = [max(core[1] for core in cores) for code, cores in found.items() if BY_CODE[code].kind is Kind.VERTEBRA]
    least = BODY_SHARE * float(np.median(thickest)) if thickest else 0.0
    return {
        code: [xyz if BY_CODE[code].kind is not Kind.VERTEBRA or radius >= least else None for xyz, radius in cores]
        for code, cores in found.items()
    }


def _core(code: int, xyz: Indices, shape: tuple[int, ...], spacing_mm: Floats) -> tuple[Indices, float]:
    """Return the voxels of a part that are farthest from its surface, and their distance from it, mm."""
    if BY_CODE[code].kind is Kind.DISC:
        return xyz, 0.0
    # A part that the field of view cuts off continues beyond it.
    low, high = np.maximum(xyz.min(axis=0) - 1, 0), np.minimum(xyz.max(axis=0) + 2, shape)
    mask = np.zeros(high - low, dtype=np.bool_)
    mask[tuple((xyz - low).T)] = True
    if mask.all():
        return xyz, float((np.array(mask.shape) * spacing_mm).min()) / 2
    depth_mm = ndimage.distance_transform_edt(mask, sampling=spacing_mm)
    radius = float(depth_mm.max())
    return np.argwhere(depth_mm >= CORE_SHARE * radius) + low, radius


def _groups(codes: npt.NDArray[np.uint8]) -> dict[int, list[npt.NDArray[np.intp]]]:
    """Return code -> flat indices of each of its connected components."""
    components = cc3d.connected_components(codes, connectivity=CONNECTIVITY, out_dtype=np.uint32)
    flat = np.flatnonzero(components)
    owner = components.ravel()[flat]
    order = np.argsort(owner, kind="stable")
    flat = flat[order]
    _, starts = np.unique(owner[order], return_index=True)
    groups: dict[int, list[npt.NDArray[np.intp]]] = {}
    for group in np.split(flat, starts[1:]) if flat.size else []:
        groups.setdefault(int(codes.ravel()[group[0]]), []).append(group)
    return groups


def _part(code: int, xyz: Indices, body: Indices | None, shape: tuple[int, ...], ruler: Ruler) -> Part:
    center = (xyz if body is None else body).mean(axis=0)
    low, high = xyz.min(axis=0).tolist(), (xyz.max(axis=0) + 1).tolist()
    x, y, z = center.tolist()
    return Part(
        code=code,
        voxels=len(xyz),
        volume_mm3=len(xyz) * float(np.prod(ruler.spacing_mm)),
        center_vox=(x, y, z),
        place_mm=ruler.place(center * ruler.spacing_mm),
        span_mm=_span(xyz, ruler),
        has_body=body is not None,
        is_cut=any(first == 0 or end == size for first, end, size in zip(low, high, shape, strict=True)),
        depth_mm=((high[1] - low[1]) * float(ruler.spacing_mm[1])),
        box=(slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])),
    )


def _span(xyz: npt.NDArray[np.intp], ruler: Ruler) -> tuple[float, float]:
    some = xyz[:: -(-len(xyz) // SPAN_SAMPLE)]
    first, last = np.quantile(ruler.places(some * ruler.spacing_mm), (SPAN_REST, 1 - SPAN_REST))
    return float(first), float(last)


def _joined(groups: Sequence[npt.NDArray[np.intp]], shape: tuple[int, ...]) -> list[npt.NDArray[np.intp]]:
    """Return groups of voxels in which those that nearly touch are joined."""
    if len(groups) == 1:
        return list(groups)
    flat = np.concatenate(groups)
    xyz = np.stack(np.unravel_index(flat, shape), axis=1)
    low = xyz.min(axis=0) - JOIN_VOX
    mask = np.zeros(np.ptp(xyz, axis=0) + 1 + 2 * JOIN_VOX, dtype=np.bool_)
    local = tuple((xyz - low).T)
    mask[local] = True
    numbered, count = connected_components(mask, join_vox=JOIN_VOX)
    owner = numbered[local]
    return [flat[owner == k] for k in range(1, count + 1)]


def row_findings(parts: Mapping[int, tuple[Part, ...]], origin: npt.NDArray[np.intp]) -> list[Finding]:
    """Return the findings about the order of levels.

    Args:
        parts: From ``levels_in``.
        origin: (3,) index of the map's first voxel, added to the points.

    Returns:
        The findings; a code is represented by its largest part.
    """
    levels = [found[0] for found in parts.values() if found[0].volume_mm3 >= MIN_STRUCTURE_MM3]
    levels = sorted((part for part in levels if part.has_body or part.code == C1), key=lambda part: part.place_mm)
    seen = {code for code, found in parts.items() if sum(p.volume_mm3 for p in found) >= MIN_STRUCTURE_MM3}
    return [
        *_gaps(levels, seen, origin),
        *_order(levels, origin),
        *_between(levels, origin),
        *_reaching(levels, origin),
        *_wide(levels, origin),
    ]


def _where(part: Part, origin: npt.NDArray[np.intp]) -> tuple[int, int, int]:
    return point_at(part.center_vox, origin)


def point_at(point_vox: npt.ArrayLike, origin: npt.NDArray[np.intp]) -> tuple[int, int, int]:
    """Return the voxel of a whole map that is nearest to a point in a crop of it, which begins at ``origin``."""
    x, y, z = (np.round(np.asarray(point_vox)).astype(int) + origin).tolist()
    return int(x), int(y), int(z)


def _rows(codes: set[int], kind: Kind) -> list[tuple[int, ...]]:
    """Return the codes of one kind in every variant, the normal column first."""
    rows = []
    for thoracic in (12, 13, 11):
        for lumbar in (5, 6, 4):
            spine = column(thoracic, lumbar)
            discs = tuple(code for code in spine.discs if code is not None)
            rows.append(discs if kind is Kind.DISC else (*spine.vertebrae, SACRUM))
    return rows


def _gaps(levels: Sequence[Part], seen: set[int], origin: npt.NDArray[np.intp]) -> list[Finding]:
    """Return the levels missing between two that are there, in the variant that leaves out the fewest."""
    found = []
    for kind in (Kind.DISC, Kind.VERTEBRA):
        mine = [p for p in levels if (BY_CODE[p.code].kind is Kind.DISC) == (kind is Kind.DISC)]
        present = {p.code for p in mine}
        if len(present) < 2:
            continue
        if kind is Kind.VERTEBRA and not present - {C1, SACRUM}:
            continue
        options = []
        for row in _rows(present, kind):
            inside = [k for k, code in enumerate(row) if code in present]
            if present <= set(row):
                missing = [code for code in row[inside[0] : inside[-1] + 1] if code not in seen]
                options.append((len(missing) + _hidden(mine, row), missing))
        if not options:
            continue
        missing = min(options, key=lambda option: option[0])[1]
        by_order = sorted(mine, key=lambda part: ORDER[part.code])
        for code in missing:
            above = [p for p in by_order if ORDER[p.code] < ORDER[code]][-1]
            below = next(p for p in by_order if ORDER[p.code] > ORDER[code])
            text = numbering_messages.GAP.format(
                name=NAME_OF[code], above=NAME_OF[above.code], below=NAME_OF[below.code]
            )
            found.append(Finding("gap", code, text, 0, _where(above, origin)))
    return found


def _hidden(parts: Sequence[Part], row: Sequence[int]) -> int:
    """Return the number of steps along a variant with fewer vertebrae that are too long for one level."""
    if len(row) >= len(column().vertebrae) + 1 or (THORACIC[11] in row and LUMBAR[4] in row):
        return 0
    places = [part.place_mm for part in parts]
    steps = np.diff(places)
    count = 0
    for k, step in enumerate(steps):
        pair = {parts[k].code, parts[k + 1].code}
        near = np.concatenate([steps[max(0, k - NEAR_STEPS) : k], steps[k + 1 : k + 1 + NEAR_STEPS]])
        short = bool(pair & {THORACIC[10], LUMBAR[0], LUMBAR[3]})
        wide = WIDE_STEP_TO_SACRUM if SACRUM in pair else WIDE_STEP
        if short and near.size and step > wide * float(np.median(near)):
            count += 1
    return count


def _order(levels: Sequence[Part], origin: npt.NDArray[np.intp]) -> list[Finding]:
    """Return the levels that break the order of names along the canal: those outside the longest rising row."""
    ranks = [ORDER[part.code] for part in levels]
    tails: list[int] = []
    ends: list[int] = []
    previous = [-1] * len(ranks)
    for k, rank in enumerate(ranks):
        at = bisect_left(tails, rank)
        previous[k] = ends[at - 1] if at else -1
        tails[at : at + 1], ends[at : at + 1] = [rank], [k]
    in_order, k = set(), ends[-1] if ends else -1
    while k >= 0:
        in_order.add(k)
        k = previous[k]
    found = []
    for k, part in enumerate(levels):
        if k not in in_order:
            text = numbering_messages.ORDER if k else numbering_messages.ORDER_FIRST
            text = text.format(name=NAME_OF[part.code], above=NAME_OF[levels[k - 1].code])
            found.append(Finding("order", part.code, text, part.voxels, _where(part, origin)))
    return found


def _reaching(levels: Sequence[Part], origin: npt.NDArray[np.intp]) -> list[Finding]:
    """Return the vertebrae that reach past the middle of the next vertebra but one, which not even a spinous process
    does."""
    column_parts = [part for part in levels if BY_CODE[part.code].kind is not Kind.DISC]
    found = []
    for k, part in enumerate(column_parts):
        for at in (k - APART, k + APART):
            if not 0 <= at < len(column_parts):
                continue
            other = column_parts[at]
            below = other.place_mm > part.place_mm
            if part.span_mm[1] > other.place_mm if below else part.span_mm[0] < other.place_mm:
                text = numbering_messages.REACH_DOWN if below else numbering_messages.REACH_UP
                text = text.format(name=NAME_OF[part.code], other=NAME_OF[other.code])
                found.append(Finding("reach", part.code, text, part.voxels, _where(part, origin)))
    return found


def _wide(levels: Sequence[Part], origin: npt.NDArray[np.intp]) -> list[Finding]:
    """Return the neighbors by name that are as far apart as if a level between them had been left out."""
    found = []
    usual_mm = _lengths_mm()
    for kind in (Kind.DISC, Kind.VERTEBRA):
        mine = [part for part in levels if BY_CODE[part.code].kind is kind]
        pairs = [(upper, lower) for upper, lower in pairwise(mine) if (upper.code, lower.code) in usual_mm]
        lengths = [(lower.place_mm - upper.place_mm) / usual_mm[upper.code, lower.code] for upper, lower in pairs]
        for k, ((upper, lower), length) in enumerate(zip(pairs, lengths, strict=True)):
            near = lengths[max(0, k - NEAR_STEPS) : k] + lengths[k + 1 : k + 1 + NEAR_STEPS]
            if len(near) >= MIN_STEPS and length > WIDE_STEP * float(np.median(near)):
                above, below = NAME_OF[upper.code], NAME_OF[lower.code]
                apart, times = lower.place_mm - upper.place_mm, length / float(np.median(near))
                text = numbering_messages.WIDE.format(upper=above, lower=below, mm=apart, times=times)
                found.append(Finding("wide", lower.code, text, lower.voxels, _where(lower, origin)))
    return found


@cache
def _lengths_mm() -> Mapping[tuple[int, int], float]:
    """Return neighbors of a kind -> distance between their middles, mm, adult; not C1 and C2, whose middles vary."""
    lengths: dict[tuple[int, int], float] = {}
    for thoracic in (11, 12, 13):
        for lumbar in (4, 5, 6):
            spine = column(thoracic, lumbar)
            below = pairwise(zip(spine.vertebrae[1:], spine.discs[1:], strict=True))
            for (upper, upper_disc), (lower, lower_disc) in below:
                if upper != C2:
                    lengths[upper, lower] = (HEIGHT_MM[upper] + HEIGHT_MM[lower]) / 2
                if upper_disc is not None and lower_disc is not None:
                    lengths[upper_disc, lower_disc] = HEIGHT_MM[lower]
    return lengths


def _between(levels: Sequence[Part], origin: npt.NDArray[np.intp]) -> list[Finding]:
    """Return the discs whose neighbors in the row are vertebrae that do not belong to them."""
    pairs: dict[int, set[tuple[int, int]]] = {}
    for thoracic in (11, 12, 13):
        for lumbar in (4, 5, 6):
            spine = column(thoracic, lumbar)
            following = [*spine.vertebrae[1:], SACRUM]
            for above, disc, below in zip(spine.vertebrae, spine.discs, following, strict=True):
                if disc is not None:
                    pairs.setdefault(disc, set()).add((above, below))
    found = []
    for k, part in enumerate(levels):
        if part.code not in pairs:
            continue
        over = levels[k - 1].code if k and levels[k - 1].code not in pairs else None
        under = levels[k + 1].code if k + 1 < len(levels) and levels[k + 1].code not in pairs else None
        fits = any((over in (None, a)) and (under in (None, b)) for a, b in pairs[part.code])
        if not fits:
            names = " and ".join(NAME_OF[code] for code in (over, under) if code is not None)
            text = numbering_messages.DISC_BETWEEN.format(name=NAME_OF[part.code], neighbors=names)
            found.append(Finding("disc_between", part.code, text, part.voxels, _where(part, origin)))
    return found
