"""Check a label map for errors: gaps, duplicates, wrong order, fragments, unknown codes."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import (
    BACKGROUND,
    BY_CODE,
    C1,
    C2,
    CANAL,
    CORD,
    LUMBAR,
    NAME_OF,
    SACRUM,
    THORACIC,
    Kind,
    Step2,
    column,
)
from totalspineseg_server.numbering import numbering_messages
from totalspineseg_server.numbering.evidence_weights import ORDER
from totalspineseg_server.numbering.findings import Finding
from totalspineseg_server.numbering.parts import Part, fragments, levels_in
from totalspineseg_server.numbering.states import HEIGHT_MM
from totalspineseg_server.transforms.components import foreground_box, labels_present

LAST_STEP_CLASS: Final = max(step_class.value for step_class in Step2)
"""Largest class of a network's raw map; smaller values that are not codes are also such classes."""
MOST_STRANGE: Final = 10
"""Largest number of values without a structure that are named; with more, it is not a map with these codes."""
CORD_OUTSIDE_SHARE: Final = 0.2
"""Share of the cord voxels of a slice that must lie outside the outline of the canal for the slice to count."""
CORD_SLICES: Final = 5
"""Number of such slices that make a finding."""
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
USUAL_STEP: Final = (0.5, 1.35)
"""Smallest and largest step from vertebra to vertebra, as a share of the usual one of adults: half of it in a child of
three years."""
DISC_WIDTH: Final = (0.9, 2.0)
"""Smallest and largest width of a disc, as a share of its depth. In people of any age it is about 1.3 to 1.5."""
MIN_SIZED: Final = 3
"""Smallest number of steps or discs whose sizes say something about the voxel size."""
MIN_STEPS: Final = 2
"""Smallest number of steps that have a usual length."""


def lint(labels: npt.NDArray[np.integer[Any]], spacing: Sequence[float]) -> tuple[Finding, ...]:
    """Return the errors in the label map of a network or a reader.

    Args:
        labels: Integer codes (X, Y, Z) nearest RAS, of either step. Not modified.
        spacing: Voxel size, mm.

    Returns:
        The findings: first unknown codes and checks that were not possible, then the others from superior to inferior;
        empty for a sound map.

    Raises:
        ValueError: The map is not 3D or not of an integer type.
    """
    if labels.ndim != 3 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"expected a 3D map of integer codes, got {labels.ndim}D {labels.dtype}")
    box = foreground_box(labels, margin_vox=1)
    if box is None:
        return (Finding("not_checked", BACKGROUND, numbering_messages.EMPTY),)
    # The margin makes sure that what touches the outer faces of the crop is cut off by the field of view.
    crop = np.ascontiguousarray(labels[box])
    origin = np.array([axis.start for axis in box])
    mm = np.asarray(spacing, dtype=np.float64)
    strange = _strange_codes(crop, origin)
    if len(strange) > MOST_STRANGE:
        values = ", ".join(str(finding.code) for finding in strange[:MOST_STRANGE])
        message = numbering_messages.NO_MAP.format(count=len(strange), values=values)
        return (Finding("not_checked", BACKGROUND, message),)
    parts = levels_in(crop, mm)
    parts = {code: parts[code] for code in _with_a_place(parts)}
    column_findings = [*fragments(parts, origin), *row_findings(parts, origin)]
    column_findings.sort(key=lambda finding: -(finding.point_vox or (0, 0, 0))[2])
    return (*strange, *_no_levels(parts), *_sizes(parts, mm), *column_findings, *_cord_outside(crop, origin))


def levels_read(labels: npt.NDArray[np.integer[Any]], program: str = "") -> str:
    """Return a sentence that names the first and the last level that the numbers of a map mean.

    Another tool may use the same numbers for other levels, and then its map looks as sound as one of this project.

    Args:
        labels: Integer codes of any shape. Not modified.
        program: Program whose numbers were read as these codes; "" if they were read as they are.
    """
    table = numbering_messages.NUMBERS_OF.format(program=program) if program else numbering_messages.OWN_CODES
    codes = sorted((int(code) for code in np.unique(labels) if code in ORDER), key=ORDER.__getitem__)
    names = [NAME_OF[code] for code in _with_a_place(codes)]
    pair = numbering_messages.LEVELS.format(first=names[0], last=names[-1]) if names else numbering_messages.NO_LEVEL
    return numbering_messages.READ_AS.format(table=table, levels=names[0] if len(names) == 1 else pair)


def _with_a_place(codes: Iterable[int]) -> list[int]:
    """Return the codes of levels; in a step-1 result only those of discs, because the sacrum's code stands for every
    vertebra."""
    levels = list(codes)
    if any(BY_CODE[code].kind is Kind.VERTEBRA and code != C1 for code in levels):
        return levels
    return [code for code in levels if BY_CODE[code].kind is Kind.DISC]


def _no_levels(parts: Mapping[int, tuple[Part, ...]]) -> list[Finding]:
    if parts:
        return []
    return [Finding("not_checked", BACKGROUND, numbering_messages.NO_LEVELS)]


def _sizes(parts: Mapping[int, tuple[Part, ...]], mm: npt.NDArray[np.float64]) -> list[Finding]:
    """Return a finding for each direction in which the levels have sizes that people do not have, as with a wrong voxel
    size."""
    levels = sorted((found[0] for found in parts.values()), key=lambda part: part.place_mm)
    # The first and the last vertebra may be cut off, and the center of the sacrum depends on how much of it is in view.
    bodies = [p for p in levels if BY_CODE[p.code].kind is Kind.VERTEBRA and p.code != C1 and p.has_body][1:-1]
    steps = [
        (b.place_mm - a.place_mm) / ((HEIGHT_MM[a.code] + HEIGHT_MM[b.code]) / 2)
        for a, b in pairwise(bodies)
        if ORDER[b.code] - ORDER[a.code] == APART
    ]
    discs = [part for part in levels if BY_CODE[part.code].kind is Kind.DISC and not part.is_cut]
    widths = [float((disc.box[0].stop - disc.box[0].start) * mm[0] / disc.depth_mm) for disc in discs]
    found = []
    for values, (least, most), text in (
        (steps, USUAL_STEP, numbering_messages.UNUSUAL_STEP),
        (widths, DISC_WIDTH, numbering_messages.UNUSUAL_WIDTH),
    ):
        share = float(np.median(values)) if len(values) >= MIN_SIZED else None
        if share is not None and not least <= share <= most:
            found.append(Finding("size", BACKGROUND, text.format(percent=100 * share)))
    return found


def _point(point: npt.ArrayLike, origin: npt.NDArray[np.intp]) -> tuple[int, int, int]:
    x, y, z = (np.round(np.asarray(point)).astype(int) + origin).tolist()
    return int(x), int(y), int(z)


def _strange_codes(crop: npt.NDArray[np.integer[Any]], origin: npt.NDArray[np.intp]) -> list[Finding]:
    """Return a finding for each value that no structure has."""
    found = []
    # Sorting all voxels of a map is slow; most maps have one byte for each.
    is_bytes = crop.dtype == np.uint8
    values = np.flatnonzero(labels_present(crop.astype(np.uint8, copy=False))) if is_bytes else np.unique(crop)
    for code in values.tolist():
        if code == BACKGROUND or code in BY_CODE:
            continue
        here = np.argwhere(crop == code)
        where, count = _point(here[0], origin), len(here)
        is_class = 0 < code <= LAST_STEP_CLASS
        kind = "step_code" if is_class else "unknown_code"
        text = numbering_messages.STEP_CODE if is_class else numbering_messages.UNKNOWN_CODE
        found.append(Finding(kind, int(code), text.format(value=code, voxels=count), int(count), where))
    return found


def _cord_outside(crop: npt.NDArray[np.integer[Any]], origin: npt.NDArray[np.intp]) -> list[Finding]:
    """Return a finding where the cord leaves the outline of the canal in several slices."""
    cord, canal = crop == CORD, crop == CANAL
    xyz = np.argwhere(cord)
    if not len(xyz) or not canal.any():
        return []
    outside = np.zeros(len(xyz), dtype=np.bool_)
    for axis in (0, 1):
        hits = canal.any(axis=1 - axis)
        first = np.where(hits.any(axis=0), hits.argmax(axis=0), hits.shape[0])
        last = np.where(hits.any(axis=0), hits.shape[0] - 1 - hits[::-1].argmax(axis=0), -1)
        value, z = xyz[:, axis], xyz[:, 2]
        outside |= (value < first[z]) | (value > last[z])
    depth = crop.shape[2]
    share = np.bincount(xyz[outside, 2], minlength=depth) / np.maximum(np.bincount(xyz[:, 2], minlength=depth), 1)
    slices = np.flatnonzero(share > CORD_OUTSIDE_SHARE)
    if slices.size < CORD_SLICES:
        return []
    count = int(outside.sum())
    where = _point(xyz[outside & np.isin(xyz[:, 2], slices)][0], origin)
    text = numbering_messages.CORD_OUTSIDE.format(slices=slices.size, voxels=count)
    return [Finding("cord_outside_canal", CORD, text, count, where)]


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
    x, y, z = (np.round(part.center_vox).astype(int) + origin).tolist()
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
