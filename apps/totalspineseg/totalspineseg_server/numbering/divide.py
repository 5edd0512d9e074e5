"""Cut pieces that contain two levels: discs that are bridged through a vertebra, or vertebrae joined by a wrong class.

``find_pieces`` joins components that touch or have the same odd/even class, as TotalSpineSeg does. Where a disc lies
inside such a vertebra, or a disc has two lobes a level apart, the chain would have to give one piece two names. Where a
body is drawn partly as a vertebra and partly as the sacrum, it would have to give one bone two names.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import Kind
from totalspineseg_server.transforms.canal import Course, Floats, Ruler
from totalspineseg_server.transforms.components import Labels, connected_components
from totalspineseg_server.transforms.pieces import MIN_BODY_VOXELS, Piece, Pieces, describe

Ints = npt.NDArray[np.intp]

MIN_LEVEL_MM: Final = 9.0
"""Smallest distance between two discs along the canal (in the neck of a small child)."""
MIN_LOBE: Final = 0.22
"""Smallest share of the voxels that each disc of a bridged pair has."""
MAX_BRIDGE: Final = 0.5
"""Largest thickness of the bridge between two discs, as a share of the smaller disc's thickest slice."""
MAX_DISC_MM: Final = 24.0
"""Largest thickness of a disc along the canal, including ragged borders; a thicker piece without a waist is cut in the
middle.
"""
MIN_CUTTING_DISC: Final = 0.25
"""Discs smaller than this share of the median do not separate vertebrae: they are false or cut off."""
MIN_BODY_SHARE: Final = 0.12
"""Each vertebra of a joined pair has at least this share of the voxels in front of the canal."""
BESIDE_MM: Final = 1.0
MAX_BESIDE: Final = 0.5
"""Largest share of a body's cross-section that a real disc leaves within ``BESIDE_MM`` of its middle."""
MIN_SACRAL_DISC_MM: Final = 12.0
"""Smallest extent from front to back of a disc that separates a vertebra from the sacrum that surrounds it: a network
that takes the last lumbar vertebra for S1 draws only part of the disc below it."""
SACRAL_PART: Final = (0.4, 1.4)
"""Smallest and largest height of the part of the sacrum above such a disc, in levels: that of one vertebra."""
LONG_BODY: Final = 1.4
"""Length from which a body is two vertebrae with a missed disc between them, in levels (a body is 0.8 levels long)."""
NEAR_STEPS: Final = 5
"""Number of distances between neighboring discs that show how long a level is here; a missed disc doubles one of
them."""
ATLAS_WIDER: Final = 1.1
"""Smallest ratio of the width of the atlas to that of the axis (60-80 mm to 45-55 mm)."""
SAMPLE: Final = 3000
"""Number of a body's voxels that are used to find its length."""
MAX_DROP: Final = 0.8
"""How far below the disc arches and processes of two vertebrae separate at most, as a share of a level."""
USUAL_DROP: Final = 0.3
DROP_SPREAD: Final = 0.3
"""Spread of that distance around ``USUAL_DROP``."""
EMPTY: Final = 0.1
"""An empty slice counts as this share of the mean slice, so that the end of a piece is not mistaken for a waist."""
USUAL_LEVEL_MM: Final = 22.0
"""Distance between neighboring discs if fewer than two are in view."""


@dataclass(frozen=True)
class _Map:
    course: Course
    ruler: Ruler
    spacing: Floats
    raw: Labels


def divide(pieces: Pieces, raw: Labels, ruler: Ruler) -> Pieces:
    """Cut every piece that contains more than one level.

    Args:
        pieces: From ``find_pieces``.
        raw: uint8 (X, Y, Z) RAS, classes of the step's network. Not modified.
        ruler: Canal of ``raw``.

    Returns:
        The pieces, superior to inferior; the same object if nothing was cut.
    """
    if ruler.course is None or not pieces.discs:
        return pieces
    seen = _Map(ruler.course, ruler, ruler.spacing_mm, raw)
    disc_map, discs = _divide(
        pieces.disc_map,
        pieces.discs,
        seen,
        lambda k: _is_high(pieces.discs[k], seen),
        lambda _, xyz: _disc_owner(xyz, seen),
    )
    if discs is not pieces.discs:
        pieces = replace(pieces, disc_map=disc_map, discs=discs)
    if pieces.vertebra_map is None or not pieces.vertebrae:
        return pieces
    usual = float(np.median([p.voxels for p in pieces.discs]))
    places = np.array([p.centroid_vox for p in pieces.discs if p.voxels >= MIN_CUTTING_DISC * usual])
    long = [p for p in pieces.discs if (p.box[1].stop - p.box[1].start) * seen.spacing[1] >= MIN_SACRAL_DISC_MM]
    inside = np.array([p.centroid_vox for p in long]).reshape(-1, 3)
    vertebrae = pieces.vertebrae
    before = pieces.vertebra_map
    vertebra_map, divided = _divide(
        before,
        vertebrae,
        seen,
        lambda k: (
            k == 0
            or vertebrae[k].parts > 1
            or vertebrae[k].kind is Kind.SACRUM
            or _holds_disc(before, vertebrae[k], k, places, seen)
        ),
        lambda k, xyz: _vertebra_owner(vertebrae[k], xyz, places, inside, seen, is_top=k == 0),
    )
    if divided is not vertebrae:
        pieces = replace(pieces, vertebra_map=vertebra_map, vertebrae=divided)
    return _with_whole_bodies(pieces, np.concatenate([places, inside]), seen)


def _with_whole_bodies(pieces: Pieces, discs_vox: Floats, seen: _Map) -> Pieces:
    """Join the parts of each body that is drawn partly as a vertebra and partly as the sacrum.

    Args:
        pieces: Pieces that contain one level each.
        discs_vox: (m, 3) middles of discs that separate bodies.
        seen: The map.
    """
    numbered = pieces.vertebra_map
    if numbered is None:
        return pieces
    discs = np.unique(seen.course.locate(discs_vox * seen.spacing))
    gaps: dict[int, list[int]] = {}
    for k, piece in enumerate(pieces.vertebrae):
        gap = _gap_of(piece, discs, seen)
        if gap is not None:
            gaps.setdefault(gap, []).append(k)
    owner = np.arange(len(pieces.vertebrae))
    for mine in gaps.values():
        least = MIN_BODY_SHARE * sum(pieces.vertebrae[k].body_voxels for k in mine)
        fair = [k for k in mine if pieces.vertebrae[k].body_voxels >= least]
        if len({pieces.vertebrae[k].kind for k in fair}) > 1:
            owner[fair] = fair[0]
    if (owner == np.arange(len(owner))).all():
        return pieces
    parts: list[tuple[Piece, Ints]] = []
    for first in np.unique(owner):
        members = np.flatnonzero(owner == first)
        part = pieces.vertebrae[first]
        if len(members) > 1:
            largest = max(members, key=lambda k: pieces.vertebrae[k].body_voxels)
            xyz = np.argwhere(np.isin(numbered, members + 1))
            part = describe(pieces.vertebrae[largest].kind, xyz, seen.raw, seen.ruler)
        parts.append((part, members))
    parts.sort(key=lambda part: (-part[0].z_order, -part[0].centroid_vox[2]))
    rank = np.zeros(len(owner) + 1, dtype=np.int32)
    for place, (_, members) in enumerate(parts, start=1):
        rank[members + 1] = place
    return replace(pieces, vertebra_map=rank[numbered], vertebrae=tuple(part for part, _ in parts))


def _gap_of(piece: Piece, discs_mm: Floats, seen: _Map) -> int | None:
    """Return the number of discs above a body; None if it has none, does not lie between two discs, or if there is room
    for two bodies between these."""
    if piece.body_centroid_vox is None:
        return None
    middle = float(seen.course.locate(np.asarray(piece.body_centroid_vox) * seen.spacing)[0])
    gap = int(np.searchsorted(discs_mm, middle))
    if not 0 < gap < discs_mm.size:
        return None
    is_one = discs_mm[gap] - discs_mm[gap - 1] <= LONG_BODY * _level_at(middle, discs_mm)
    return gap if is_one else None


def _divide(
    numbered: npt.NDArray[np.int32],
    pieces: tuple[Piece, ...],
    seen: _Map,
    worth_asking: Callable[[int], bool],
    owner_of: Callable[[int, Ints], Ints],
) -> tuple[npt.NDArray[np.int32], tuple[Piece, ...]]:
    """Find the part that each voxel belongs to with ``owner_of``, and rebuild the pieces that have several parts."""
    parts: list[tuple[Piece, Ints | None, int]] = []
    for k, piece in enumerate(pieces):
        if not worth_asking(k):
            parts.append((piece, None, k))
            continue
        low = np.array([s.start for s in piece.box])
        xyz = np.argwhere(numbered[piece.box] == k + 1) + low
        owner = owner_of(k, xyz)
        if owner.max(initial=0) == 0:
            parts.append((piece, None, k))
        else:
            parts += [
                (describe(piece.kind, xyz[owner == n], seen.raw, seen.ruler), xyz[owner == n], k)
                for n in range(owner.max() + 1)
            ]
    if len(parts) == len(pieces):
        return numbered, pieces
    parts.sort(key=lambda part: (-part[0].z_order, -part[0].centroid_vox[2]))
    rank = np.zeros(len(pieces) + 1, dtype=np.int32)
    for place, (_, xyz, k) in enumerate(parts, start=1):
        if xyz is None:
            rank[k + 1] = place
    result = rank[numbered]
    for place, (_, xyz, _) in enumerate(parts, start=1):
        if xyz is not None:
            result[xyz[:, 0], xyz[:, 1], xyz[:, 2]] = place
    return result, tuple(piece for piece, _, _ in parts)


def _is_high(piece: Piece, seen: _Map) -> bool:
    """Return whether a disc is as high as the distance between two discs."""
    return bool((piece.box[2].stop - piece.box[2].start) * seen.spacing[2] >= MIN_LEVEL_MM)


def _holds_disc(numbered: npt.NDArray[np.int32], piece: Piece, index: int, discs_vox: Floats, seen: _Map) -> bool:
    """Return whether a body seems to contain discs or to be too long for one vertebra, by every second voxel."""
    if piece.body_centroid_vox is None:
        return False
    x, y, z = (slice(s.start, s.stop, 2) for s in piece.box)
    low = np.array([s.start for s in piece.box])
    xyz = 2 * np.argwhere(numbered[x, y, z] == index + 1) + low
    rough = _direction(np.asarray(piece.body_centroid_vox), seen)
    heights, discs = rough(xyz[seen.ruler.in_front(xyz)]), rough(discs_vox)
    return bool(_cuts(heights, discs)) or (piece.kind is Kind.VERTEBRA and _is_long(heights, np.sort(discs)))


def _level_at(place_mm: float, discs_mm: Floats) -> float:
    """Return the distance between neighboring discs around a place, mm."""
    steps = np.diff(discs_mm)
    if not steps.size:
        return USUAL_LEVEL_MM
    near = np.argsort(np.abs((discs_mm[1:] + discs_mm[:-1]) / 2 - place_mm))[:NEAR_STEPS]
    return float(np.median(steps[near]))


def _is_long(heights: Floats, discs_mm: Floats) -> bool:
    """Return whether a body between discs is too long for one; the axis with its dens and the sacrum may be long."""
    if not heights.size:
        return False
    low, middle, high = np.quantile(heights, (0.02, 0.5, 0.98))
    between = (discs_mm < low).any() and (discs_mm > high).any()
    return bool(between and high - low > LONG_BODY * _level_at(middle, discs_mm))


def _disc_owner(xyz: Ints, seen: _Map) -> Ints:
    """Return the part to which each voxel of a disc belongs: lobes that are a level apart along the canal are parts."""
    along = _along(xyz, seen)
    bins = np.floor(along - along.min()).astype(np.intp)
    cuts = np.array(_disc_cuts(np.bincount(bins)), dtype=np.intp)
    return np.asarray(np.searchsorted(cuts, bins, side="right"), dtype=np.intp)


def _disc_cuts(counts: Ints) -> list[int]:
    """Return the first bins of all parts but the uppermost; a chain of discs is cut at one waist after another."""
    cut = _waist(counts)
    if cut is None:
        first, last = np.searchsorted(counts.cumsum(), (0.02 * counts.sum(), 0.98 * counts.sum()))
        if last - first <= MAX_DISC_MM:
            return []
        cut = counts.size // 2
    return [*_disc_cuts(counts[:cut]), cut, *(cut + below for below in _disc_cuts(counts[cut:]))]


def _along(xyz: Ints, seen: _Map) -> Floats:
    """Return the height of voxels along the canal's direction beside them, mm, increasing toward inferior from their
    middle.
    """
    return _direction(xyz.mean(axis=0), seen)(xyz)


def _direction(center_vox: Floats, seen: _Map) -> Callable[[npt.ArrayLike], Floats]:
    """Return a function of voxels: their height relative to a center along the canal, mm, larger if inferior."""
    center = center_vox * seen.spacing
    line = seen.course.points_mm
    middle = int(((line - center) ** 2).sum(axis=1).argmin())
    reach = max(1, round(MIN_LEVEL_MM / seen.spacing[2]))
    direction = line[min(middle + reach, len(line) - 1)] - line[max(middle - reach, 0)]
    direction = direction / np.linalg.norm(direction)
    return lambda xyz: np.asarray((np.asarray(xyz) * seen.spacing - center) @ direction, dtype=np.float64)


def _waist(counts: Ints) -> int | None:
    """Return where a profile (voxels per mm) has a waist between lobes that are at least a level apart, or None."""
    smooth = np.convolve(counts, np.ones(3) / 3, "same")
    total, best, found = counts.sum(), MAX_BRIDGE, None
    for cut in range(2, smooth.size - 2):
        above, below = counts[:cut].sum(), counts[cut:].sum()
        if min(above, below) < MIN_LOBE * total:
            continue
        upper, lower = int(smooth[:cut].argmax()), cut + int(smooth[cut:].argmax())
        waist = smooth[cut] / min(smooth[upper], smooth[lower])
        if waist < best and lower - upper >= MIN_LEVEL_MM:
            best, found = waist, cut
    return found


def _vertebra_owner(
    piece: Piece, xyz: Ints, discs_vox: Floats, inside_vox: Floats, seen: _Map, *, is_top: bool
) -> Ints:
    """Return the part to which each voxel of a vertebra or the sacrum belongs; discs inside the body separate parts.

    Args:
        piece: The piece.
        xyz: (n, 3) its voxels.
        discs_vox: (m, 3) middles of discs that separate vertebrae.
        inside_vox: (l, 3) middles of discs that separate a vertebra from the sacrum, even if it surrounds them.
        seen: The map.
        is_top: Whether it is the uppermost.
    """
    none = np.zeros(len(xyz), dtype=np.intp)
    if piece.body_centroid_vox is None:
        return none
    in_body = seen.ruler.in_front(xyz)
    body = xyz[in_body]
    if len(body) < MIN_BODY_VOXELS:
        return none
    sample = body[:: max(1, len(body) // SAMPLE)]
    discs = np.sort(seen.course.locate(discs_vox * seen.spacing))
    heights = seen.course.locate(sample * seen.spacing)
    level = _level_at(float(np.median(heights)), discs)
    cuts = _cuts(heights, discs)
    if piece.kind is Kind.VERTEBRA:
        cuts = _with_waists(heights, cuts, discs)
    elif not cuts and len(inside_vox):
        cuts = _sacral_cut(heights, np.sort(seen.course.locate(inside_vox * seen.spacing)), level)
    owner = _parts(xyz, in_body, np.array(cuts), level, seen) if cuts else none
    if is_top:
        owner = _without_atlas(xyz, owner, in_body, seen)
    return _apart(xyz, owner, in_body, seen) if piece.parts > 1 else owner


def _cuts(heights: Floats, discs_mm: Floats) -> list[float]:
    """Return the places of the discs that separate a body, mm along the canal.

    Each part must get a fair share of the body, and hardly any of the body may lie beside the disc: a disc that the
    body surrounds is false.
    """
    cuts: list[float] = []
    if not heights.size:
        return cuts
    least = max(1.0, MIN_BODY_SHARE * heights.size)
    density = np.bincount(np.floor(heights - heights.min()).astype(np.intp))
    usual = float(np.median(density[density > 0]))
    for disc in np.sort(discs_mm):
        beside = (np.abs(heights - disc) <= BESIDE_MM).sum() / (2 * BESIDE_MM)
        above = ((heights < disc) & (heights >= (cuts[-1] if cuts else -np.inf))).sum()
        if above >= least and (heights >= disc).sum() >= least and beside <= MAX_BESIDE * usual:
            cuts.append(float(disc))
    return cuts


def _sacral_cut(heights: Floats, discs_mm: Floats, level_mm: float) -> list[float]:
    """Return the place of the uppermost disc inside the sacrum with one vertebra above it, mm along the canal, or
    nothing: L5 is above L5-S, and S1 above S1-S2, and only the names of all discs tell which it is."""
    # A few voxels far above or below the rest must not move the ends.
    low, high = np.quantile(heights, (0.02, 0.98))
    least = MIN_BODY_SHARE * heights.size
    for disc in discs_mm:
        is_one = SACRAL_PART[0] * level_mm <= disc - low <= SACRAL_PART[1] * level_mm
        if is_one and disc < high and (heights < disc).sum() >= least and (heights >= disc).sum() >= least:
            return [float(disc)]
    return []


def _with_waists(heights: Floats, cuts: list[float], discs_mm: Floats) -> list[float]:
    """Return the cuts, and another one in each part that is too long, where it is thinnest near its middle."""
    edges = [float(heights.min()), *cuts, float(heights.max()) + 1.0]
    found = list(cuts)
    for start, stop in pairwise(edges):
        part = heights[(heights >= start) & (heights < stop)]
        if not _is_long(part, discs_mm):
            continue
        counts = np.bincount(np.floor(part - part.min()).astype(np.intp))
        low, high = counts.size // 3, counts.size - counts.size // 3
        smooth = np.convolve(counts, np.ones(3) / 3, "same")[low:high]
        found.append(float(part.min()) + low + float(smooth.argmin()) + 0.5)
    return sorted(found)


def _parts(xyz: Ints, in_body: npt.NDArray[np.bool_], cuts: Floats, level: float, seen: _Map) -> Ints:
    """Split bodies at the discs, and arches and processes at the thinnest place a little below each disc."""
    owner = np.zeros(len(xyz), dtype=np.intp)
    heights = seen.course.locate(xyz * seen.spacing)
    owner[in_body] = np.searchsorted(cuts, heights[in_body])
    behind = ~in_body
    if behind.any():
        profile_start = float(heights[behind].min())
        counts = np.bincount(np.floor(heights[behind] - profile_start).astype(np.intp))
        lower = [cut + _drop(counts, cut - profile_start, level) for cut in cuts]
        owner[behind] = np.searchsorted(np.array(lower), heights[behind])
    owner[behind] = _whole_components(xyz, owner, in_body)[behind]
    used = np.unique(owner)
    return np.searchsorted(used, owner)


def _without_atlas(xyz: Ints, owner: Ints, in_body: npt.NDArray[np.bool_], seen: _Map) -> Ints:
    """Split atlas and axis, which have no disc between, at the waist of their arches if the upper is a wide ring."""
    mine = owner == 0
    behind = mine & ~in_body
    if behind.sum() < MIN_BODY_VOXELS:
        return owner
    heights = seen.course.locate(xyz[mine] * seen.spacing)
    start = float(heights.min())
    waist = _waist(np.bincount(np.floor(heights[~in_body[mine]] - start).astype(np.intp)))
    if waist is None:
        return owner
    upper = heights < start + waist
    x = xyz[mine, 0]
    if np.ptp(x[upper]) < ATLAS_WIDER * np.ptp(x[~upper]):
        return owner
    result = owner + 1
    result[np.flatnonzero(mine)[upper]] = 0
    return result


def _drop(counts: Ints, start: float, level_mm: float) -> float:
    """Return how far below a disc the processes are thinnest, near the usual place, mm."""
    last = min(counts.size, int(start + MAX_DROP * level_mm) + 1)
    away = np.arange(max(0, int(start)), last) - start
    if not away.size:
        return USUAL_DROP * level_mm
    thin = counts[max(0, int(start)) : last] + EMPTY * counts.mean()
    return float(away[(thin * (1 + ((away / level_mm - USUAL_DROP) / DROP_SPREAD) ** 2)).argmin()])


def _components(xyz: Ints) -> tuple[Ints, int]:
    """Return the connected component (1..) of each voxel, and the number of components."""
    low = xyz.min(axis=0) - 1
    local = tuple((xyz - low).T)
    mask = np.zeros(np.ptp(xyz, axis=0) + 3, dtype=np.bool_)
    mask[local] = True
    numbered, count = connected_components(mask, join_vox=1)
    return numbered[local].astype(np.intp), count


def _apart(xyz: Ints, owner: Ints, in_body: npt.NDArray[np.bool_], seen: _Map) -> Ints:
    """Make parts of joined components that may belong to another vertebra.

    These are components without a body, and components whose body is a level away from the largest body.
    """
    component, count = _components(xyz)
    result = owner.copy()
    heights: dict[int, list[float]] = {}
    for k in np.argsort(-np.bincount(component, minlength=count + 1)[1:]) + 1:
        mine = component == k
        body = mine & in_body
        if body.sum() < MIN_BODY_VOXELS:
            result[mine] = result.max() + 1
            continue
        part = int(np.bincount(owner[body]).argmax())
        height = float(seen.course.locate(xyz[body].mean(axis=0) * seen.spacing)[0])
        if all(abs(height - other) >= MIN_LEVEL_MM for other in heights.get(part, [])) and part in heights:
            result[mine] = result.max() + 1
        heights.setdefault(part, []).append(height)
    used = np.unique(result)
    return np.searchsorted(used, result)


def _whole_components(xyz: Ints, owner: Ints, in_body: npt.NDArray[np.bool_]) -> Ints:
    """Assign each connected component whose body lies in one part to that part as a whole."""
    component, count = _components(xyz)
    result = owner.copy()
    for k in range(1, count + 1):
        mine = component == k
        shares = np.bincount(owner[mine & in_body])
        if shares.size and shares.max() >= (1 - MIN_BODY_SHARE / 2) * shares.sum():
            result[mine] = int(shares.argmax())
    return result
