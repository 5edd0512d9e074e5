"""The connected parts of each code in a label map: whole structures, duplicates, fragments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import cc3d
import numpy as np
import numpy.typing as npt

from lib.anatomy import BY_CODE, CANAL, CORD, Kind
from lib.numbering.course import Floats, course_of
from lib.numbering.findings import Finding
from lib.transforms.centerline import canal_extent
from lib.transforms.components import CONNECTIVITY, connected_components

JOIN_VOX: Final = 1
"""Parts that touch once grown by a voxel count as one, as in ``find_pieces``."""
FRAGMENT_MM3: Final = 30.0
"""Smaller loose parts are ragged borders, not worth a reader's time."""
DUPLICATE_SHARE: Final = 0.35
"""A second part with this share of the largest looks like another level of the same name, not like a fragment."""
DUPLICATE_MM: Final = 8.0
"""And its center is this far away along the canal: half the smallest level."""
BODY_VOXELS: Final = 50
"""Fewer voxels in front of the canal are the tip of a process, not a body."""


@dataclass(frozen=True)
class Part:
    """One connected part of a code.

    Attributes:
        code: Its code.
        voxels: Its size.
        volume_mm3: Its size.
        center_vox: Its center of mass; of a vertebra that of its body where there is one.
        place_mm: Distance along the canal, rising to inferior.
        has_body: Whether it has a body (discs and the sacrum always).
        at_end: Whether the first or last slice cuts it off.
    """

    code: int
    voxels: int
    volume_mm3: float
    center_vox: tuple[float, float, float]
    place_mm: float
    has_body: bool
    at_end: bool


def parts_of(
    labels: npt.NDArray[np.integer], spacing_mm: Floats, last_slice: int, first_slice: int = 0
) -> Mapping[int, tuple[Part, ...]]:
    """The parts of every disc, vertebra and the sacrum.

    Args:
        labels: Codes (X, Y, Z) nearest RAS. Not modified.
        spacing_mm: (3,) voxel size.
        last_slice: Index of the last slice of the field of view.
        first_slice: Index of the first one.

    Returns:
        Code -> its parts, the largest first. Codes without a level are left out.
    """
    canal = (labels == CORD) | (labels == CANAL)
    course, extent = course_of(canal, spacing_mm), canal_extent(canal)
    volume = float(np.prod(spacing_mm))
    levels = np.zeros(256, dtype=np.uint8)
    for code, structure in BY_CODE.items():
        if structure.kind not in (Kind.CORD, Kind.CANAL):
            levels[code] = code
    codes = levels[np.clip(labels, 0, 255)] * (labels <= 255)
    numbered = cc3d.connected_components(codes, connectivity=CONNECTIVITY, out_dtype=np.uint32)
    flat = np.flatnonzero(numbered)
    if not flat.size:
        return {}
    order = np.argsort(numbered.ravel()[flat], kind="stable")
    flat = flat[order]
    _, starts = np.unique(numbered.ravel()[flat], return_index=True)
    groups: dict[int, list[npt.NDArray[np.intp]]] = {}
    for group in np.split(flat, starts[1:]):
        groups.setdefault(int(codes.ravel()[group[0]]), []).append(group)
    result = {}
    for code, found in groups.items():
        parts = []
        for group in _joined(found, labels.shape):
            xyz = np.stack(np.unravel_index(group, labels.shape), axis=1)
            body = xyz
            if BY_CODE[code].kind is Kind.VERTEBRA and extent.z.size:
                row = np.searchsorted(extent.z, xyz[:, 2]).clip(max=extent.z.size - 1)
                front = (xyz[:, 1] > extent.y_last[row]) & (xyz[:, 0] >= extent.x_first[row])
                body = xyz[front & (xyz[:, 0] <= extent.x_last[row])]
            has_body = len(body) >= BODY_VOXELS or BY_CODE[code].kind is not Kind.VERTEBRA
            center = (body if has_body else xyz).mean(axis=0)
            point = center * spacing_mm
            place = float(course.locate(point)[0]) if course is not None else -float(point[2])
            at_end = bool(xyz[:, 2].min() <= first_slice or xyz[:, 2].max() >= last_slice)
            x, y, z = center.tolist()
            parts.append(Part(code, len(xyz), len(xyz) * volume, (x, y, z), place, has_body, at_end))
        result[code] = tuple(sorted(parts, key=lambda part: -part.voxels))
    return result


def _joined(groups: Sequence[npt.NDArray[np.intp]], shape: tuple[int, ...]) -> list[npt.NDArray[np.intp]]:
    """Groups of voxels, those that nearly touch joined."""
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


def fragments(parts: Mapping[int, tuple[Part, ...]], origin: npt.NDArray[np.intp]) -> list[Finding]:
    """Codes in several parts: duplicates of a level, and loose fragments.

    Args:
        parts: From ``parts_of``.
        origin: (3,) index of the map's first voxel, added to the points.

    Returns:
        The findings; parts that the field of view cuts off are none.
    """
    found = []
    for code, (largest, *rest) in parts.items():
        name = BY_CODE[code].name
        for part in rest:
            x, y, z = (np.round(part.center_vox).astype(int) + origin).tolist()
            away = abs(part.place_mm - largest.place_mm)
            if part.voxels >= DUPLICATE_SHARE * largest.voxels and away >= DUPLICATE_MM:
                text = f"{name} appears twice, {away:.0f} mm apart along the canal ({part.voxels} voxels in the smaller)."
                found.append(Finding("duplicate", code, text, part.voxels, (x, y, z)))
            elif part.volume_mm3 >= FRAGMENT_MM3 and not part.at_end:
                text = f"A fragment of {name} ({part.voxels} voxels) is apart from the rest of it."
                found.append(Finding("fragment", code, text, part.voxels, (x, y, z)))
    return found
