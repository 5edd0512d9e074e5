"""Check a label map for errors (unknown codes, duplicates, fragments, wrong order), and for what it must show."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import (
    BACKGROUND,
    BY_CODE,
    C1,
    CANAL,
    CERVICAL,
    CORD,
    DISCS,
    NAME_OF,
    SACRUM,
    THORACIC,
    UNREVIEWED,
    VERTEBRAE,
    Kind,
    Step2,
)
from totalspineseg_server.errors import LabelError
from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.numbering import numbering_messages
from totalspineseg_server.numbering.evidence_weights import ORDER
from totalspineseg_server.numbering.findings import Finding
from totalspineseg_server.numbering.parts import APART, Part, levels_in, point_at, row_findings
from totalspineseg_server.numbering.states import HEIGHT_MM
from totalspineseg_server.transforms.components import foreground_box, labels_present

LAST_STEP_CLASS: Final = max(step_class.value for step_class in Step2)
"""Largest class of a network's raw map; smaller values that are not codes are also such classes."""
MOST_STRANGE: Final = 10
"""Largest number of values without a structure that are named; with more, it is not a map with these codes."""
FRAGMENT_MM3: Final = 30.0
"""Smallest loose part that is reported; smaller ones are ragged borders and not worth a reader's time."""
DUPLICATE_SHARE: Final = 0.35
"""Smallest share of the largest part with which a second part looks like another level of the same name, not like a
fragment."""
DUPLICATE_MM: Final = 8.0
"""Smallest distance along the canal between the centers of such parts: half the smallest level."""
MAX_BODY_DEPTH_MM: Final = 45.0
"""Largest depth of a body, which is up to 38 mm; a body with its arch is deeper."""
ARCH_DROP_MM: Final = 40.0
"""Largest distance of an arch's middle below its body."""
ARCH_RISE_MM: Final = 10.0
"""Largest distance of an arch's middle above its body."""
CORD_OUTSIDE_SHARE: Final = 0.2
"""Share of the cord voxels of a slice that must lie outside the outline of the canal for the slice to count."""
CORD_SLICES: Final = 5
"""Number of such slices that make a finding."""
USUAL_STEP: Final = (0.5, 1.35)
"""Smallest and largest step from vertebra to vertebra, as a share of the usual one of adults: half of it in a child of
three years."""
DISC_WIDTH: Final = (0.9, 2.0)
"""Smallest and largest width of a disc, as a share of its depth. In people of any age it is about 1.3 to 1.5."""
MIN_SIZED: Final = 3
"""Smallest number of steps or discs whose sizes say something about the voxel size."""
BONES: Final = (*VERTEBRAE, SACRUM)
WITH_CORD: Final = frozenset(CERVICAL + THORACIC[:10])
"""Vertebrae beside which everybody has a cord, which ends at T11 or below."""
UNREVIEWED_SHARE: Final = 0.05
"""Smallest share of the labeled voxels that unreviewed voxels must have; fewer are a slip of the brush and cannot
hide a cord, canal or discs.
"""


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
    column_findings = [*_fragments(parts, origin), *row_findings(parts, origin)]
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


def _is_arch(part: Part, body: Part) -> bool:
    """Return whether a part is the arch of a body; in the few slices beside the midline nothing joins the two."""
    return (
        BY_CODE[part.code].kind is Kind.VERTEBRA
        and body.has_body
        and body.depth_mm <= MAX_BODY_DEPTH_MM
        and part.box[1].stop <= body.box[1].start
        and -ARCH_RISE_MM <= part.place_mm - body.place_mm <= ARCH_DROP_MM
    )


def _fragments(parts: Mapping[int, tuple[Part, ...]], origin: npt.NDArray[np.intp]) -> list[Finding]:
    """Find codes that have several parts or only a few voxels: duplicates of a level, and loose fragments.

    Args:
        parts: From ``levels_in``.
        origin: (3,) index of the map's first voxel, added to the points.

    Returns:
        The findings; there is none for a part that the field of view cuts off.
    """
    found = []
    for code, (largest, *rest) in parts.items():
        name = BY_CODE[code].name
        if largest.volume_mm3 < FRAGMENT_MM3 and not largest.is_cut:
            text = numbering_messages.TOO_SMALL.format(name=name, voxels=largest.voxels)
            found.append(Finding("fragment", code, text, largest.voxels, point_at(largest.center_vox, origin)))
        for part in rest:
            if _is_arch(part, largest):
                continue
            where = point_at(part.center_vox, origin)
            away = abs(part.place_mm - largest.place_mm)
            if part.voxels >= DUPLICATE_SHARE * largest.voxels and away >= DUPLICATE_MM:
                text = numbering_messages.DUPLICATE.format(name=name, mm=away, voxels=part.voxels)
                found.append(Finding("duplicate", code, text, part.voxels, where))
            elif part.volume_mm3 >= FRAGMENT_MM3 and not part.is_cut:
                text = numbering_messages.FRAGMENT.format(name=name, voxels=part.voxels)
                found.append(Finding("fragment", code, text, part.voxels, where))
    return found


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
        where, count = point_at(here[0], origin), len(here)
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
    where = point_at(xyz[outside & np.isin(xyz[:, 2], slices)][0], origin)
    text = numbering_messages.CORD_OUTSIDE.format(slices=slices.size, voxels=count)
    return [Finding("cord_outside_canal", CORD, text, count, where)]


def missing_kinds(labels: LabelArray) -> tuple[str, ...]:
    """Return the kinds of structures that must be in view with those of a label map, but are missing from it.

    A network that is trained on such a map would learn that they do not exist.

    Args:
        labels: uint8 codes, any shape; in a step-1 map the sacrum's code stands for every vertebra. Not modified.

    Returns:
        Some of "disc", "vertebra", "canal", "cord"; none if the map shows all of the spine in view, or if
        ``UNREVIEWED`` marks a part that nobody checked.
    """
    counts = np.bincount(labels.ravel(order="K"), minlength=256)
    codes = frozenset(np.flatnonzero(counts).tolist())
    if counts[UNREVIEWED] > UNREVIEWED_SHARE * (counts.sum() - counts[BACKGROUND]):
        return ()
    missing = {
        "disc": codes.isdisjoint(DISCS),
        "vertebra": codes.isdisjoint(BONES),
        "canal": CANAL not in codes,
        "cord": CORD not in codes and not codes.isdisjoint(WITH_CORD),
    }
    return tuple(kind for kind, lacks in missing.items() if lacks)


def is_upside_down(labels: LabelArray) -> bool:
    """Return whether most levels lie above the levels that should be above them.

    This is true for labels in another numbering scheme (TotalSegmentator counts upward) and for flipped volumes.

    Args:
        labels: uint8 (X, Y, Z) codes, nearest RAS. Not modified.

    Returns:
        False for fewer than two levels of a kind.
    """
    counts = np.stack([np.bincount(labels[:, :, z].ravel(), minlength=256) for z in range(labels.shape[2])])
    sizes = counts.sum(axis=0)
    steps: list[float] = []
    for row in (BONES, DISCS):
        codes = [code for code in row if sizes[code]]
        heights = np.arange(len(counts)) @ counts[:, codes] / sizes[codes]
        steps += np.diff(heights).tolist()
    return sum(step > 0 for step in steps) * 2 > len(steps)


def require_plausible(labels: LabelArray) -> None:
    """Check that a finished label can be used to train or to compare models.

    Args:
        labels: As in ``is_upside_down``; ``UNREVIEWED`` where nobody checked.

    Raises:
        LabelError: It is upside down, or lacks a kind of structure that must be in view, although nothing is marked as
            unreviewed.
    """
    if is_upside_down(labels):
        raise LabelError(numbering_messages.UPSIDE_DOWN)
    if missing := missing_kinds(labels):
        kinds = " and no ".join(missing)
        raise LabelError(numbering_messages.LACKS_KINDS.format(kinds=kinds, unreviewed=UNREVIEWED))
