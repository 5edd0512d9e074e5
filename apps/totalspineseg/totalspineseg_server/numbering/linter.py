"""Check a label map for what cannot be right: gaps, duplicates, wrong order, fragments, unknown codes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import BACKGROUND, BY_CODE, C1, CANAL, CORD, NAME_OF, Kind, Step2
from totalspineseg_server.numbering import messages
from totalspineseg_server.numbering.evidence_weights import ORDER
from totalspineseg_server.numbering.findings import Finding
from totalspineseg_server.numbering.parts import Part, fragments, levels_in
from totalspineseg_server.numbering.row_checks import row_findings
from totalspineseg_server.transforms.components import foreground_box

LAST_STEP_CLASS: Final = max(step_class.value for step_class in Step2)
"""Largest class of a network's raw map; smaller values that are not codes are also such classes."""
MOST_STRANGE: Final = 10
"""Largest number of values without a structure that are named; with more, it is not a map with these codes."""
CORD_OUTSIDE_SHARE: Final = 0.2
"""Share of the cord voxels of a slice that must lie outside the outline of the canal for the slice to count."""
CORD_SLICES: Final = 5
"""Number of such slices that make a finding."""


def lint(labels: npt.NDArray[np.integer[Any]], spacing: Sequence[float]) -> tuple[Finding, ...]:
    """Return what cannot be right in the label map of a network or a reader.

    Args:
        labels: Integer codes (X, Y, Z) nearest RAS, of either step. Not modified.
        spacing: Voxel size, mm.

    Returns:
        The findings: first unknown codes and what was not checked, then the others from superior to inferior; empty for
        a sound map.

    Raises:
        ValueError: The map is not 3D or not of an integer type.
    """
    if labels.ndim != 3 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"expected a 3D map of integer codes, got {labels.ndim}D {labels.dtype}")
    box = foreground_box(labels, margin_vox=1)
    if box is None:
        return (Finding("not_checked", BACKGROUND, messages.EMPTY),)
    # The margin makes sure that what touches the outer faces of the crop is cut off by the field of view.
    crop = np.ascontiguousarray(labels[box])
    origin = np.array([axis.start for axis in box])
    mm = np.asarray(spacing, dtype=np.float64)
    strange = _strange_codes(crop, origin)
    if len(strange) > MOST_STRANGE:
        values = ", ".join(str(finding.code) for finding in strange[:MOST_STRANGE])
        message = (
            f"The map has {len(strange)} values that are no codes of structures, such as {values}. Nothing was checked: "
            "it is an image, or a map with the codes of another program."
        )
        return (Finding("not_checked", BACKGROUND, message),)
    parts = levels_in(crop, mm)
    parts = {code: parts[code] for code in _with_a_place(parts)}
    column_findings = [*fragments(parts, origin), *row_findings(parts, origin)]
    column_findings.sort(key=lambda finding: -(finding.point_vox or (0, 0, 0))[2])
    return (*strange, *_no_levels(parts), *column_findings, *_cord_outside(crop, origin))


def levels_read(labels: npt.NDArray[np.integer[Any]]) -> str:
    """Return a sentence that names the first and the last level that the numbers of a map mean.

    Another tool may use the same numbers for other levels, and then its map looks as sound as one of this project.

    Args:
        labels: Integer codes of any shape. Not modified.
    """
    codes = sorted((int(code) for code in np.unique(labels) if code in ORDER), key=ORDER.__getitem__)
    names = [NAME_OF[code] for code in _with_a_place(codes)]
    pair = messages.LEVELS.format(first=names[0], last=names[-1]) if names else messages.NO_LEVEL
    return messages.READ_AS.format(levels=names[0] if len(names) == 1 else pair)


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
    return [Finding("not_checked", BACKGROUND, messages.NO_LEVELS)]


def _point(point: npt.ArrayLike, origin: npt.NDArray[np.intp]) -> tuple[int, int, int]:
    x, y, z = (np.round(np.asarray(point)).astype(int) + origin).tolist()
    return int(x), int(y), int(z)


def _strange_codes(crop: npt.NDArray[np.integer[Any]], origin: npt.NDArray[np.intp]) -> list[Finding]:
    """Return a finding for each value that no structure has."""
    found = []
    values, counts = np.unique(crop, return_counts=True)
    for code, count in zip(values.tolist(), counts.tolist(), strict=True):
        if code == BACKGROUND or code in BY_CODE:
            continue
        where = _point(np.argwhere(crop == code)[0], origin)
        is_class = 0 < code <= LAST_STEP_CLASS
        kind = "step_code" if is_class else "unknown_code"
        text = messages.STEP_CODE if is_class else messages.UNKNOWN_CODE
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
    text = messages.CORD_OUTSIDE.format(slices=slices.size, voxels=count)
    return [Finding("cord_outside_canal", CORD, text, count, where)]
