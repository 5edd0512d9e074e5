"""The connected parts of each code in a label map: whole structures, duplicates, fragments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cc3d
import numpy as np
import numpy.typing as npt

from lib.anatomy import BY_CODE, CANAL, CORD, Kind
from lib.numbering.course import Floats, Ruler, ruler_of
from lib.numbering.findings import Finding
from lib.transforms.components import CONNECTIVITY, Box, connected_components

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

SPAN_REST: Final = 0.05
"""Share of a part's voxels that may lie beyond its span at either end."""
SPAN_SAMPLE: Final = 1000
"""So many of its voxels measure it."""


@dataclass(frozen=True)
class Part:
    """One connected part of a code.

    Attributes:
        code: Its code.
        voxels: Its size.
        volume_mm3: Its size.
        center_vox: Its center of mass; of a vertebra that of its body where there is one.
        place_mm: Distance along the canal, rising to inferior.
        span_mm: Distances along the canal between which nearly all of it lies.
        has_body: Whether it has a body (discs and the sacrum always).
        at_end: Whether the first or last slice cuts it off.
        box: Smallest box around it.
        number: Its number in the map of ``levels_in``.
    """

    code: int
    voxels: int
    volume_mm3: float
    center_vox: tuple[float, float, float]
    place_mm: float
    span_mm: tuple[float, float]
    has_body: bool
    at_end: bool
    box: Box
    number: int


def levels_in(
    labels: npt.NDArray[np.integer[Any]], spacing_mm: Floats
) -> tuple[Mapping[int, tuple[Part, ...]], npt.NDArray[np.int32]]:
    """The parts of every disc, vertebra and the sacrum.

    Args:
        labels: Codes (X, Y, Z) nearest RAS. Not modified.
        spacing_mm: (3,) voxel size.

    Returns:
        Code -> its parts, the largest first (codes without a level are left out); and a map of the parts'
        numbers, 0 = no level.
    """
    numbered = np.zeros(labels.shape, dtype=np.int32)
    levels = np.zeros(256, dtype=np.uint8)
    for code, structure in BY_CODE.items():
        if structure.kind not in (Kind.CORD, Kind.CANAL):
            levels[code] = code
    codes = levels[np.clip(labels, 0, 255)] * (labels <= 255)
    ruler = ruler_of((labels == CORD) | (labels == CANAL), spacing_mm)
    result: dict[int, tuple[Part, ...]] = {}
    number = 0
    for code, groups in _groups(codes).items():
        parts = []
        for group in _joined(groups, labels.shape):
            number += 1
            numbered.ravel()[group] = number
            xyz = np.stack(np.unravel_index(group, labels.shape), axis=1)
            parts.append(_part(code, number, xyz, labels.shape, ruler))
        result[code] = tuple(sorted(parts, key=lambda part: -part.voxels))
    return result, numbered


def _groups(codes: npt.NDArray[np.uint8]) -> dict[int, list[npt.NDArray[np.intp]]]:
    """Code -> flat indices of each of its connected components."""
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


def _part(code: int, number: int, xyz: npt.NDArray[np.intp], shape: tuple[int, ...], ruler: Ruler) -> Part:
    vertebra = BY_CODE[code].kind is Kind.VERTEBRA
    body = xyz[ruler.in_front(xyz)] if vertebra else xyz
    has_body = not vertebra or len(body) >= BODY_VOXELS
    center = (body if has_body else xyz).mean(axis=0)
    low, high = xyz.min(axis=0).tolist(), (xyz.max(axis=0) + 1).tolist()
    x, y, z = center.tolist()
    return Part(
        code=code,
        voxels=len(xyz),
        volume_mm3=len(xyz) * float(np.prod(ruler.spacing_mm)),
        center_vox=(x, y, z),
        place_mm=ruler.place(center * ruler.spacing_mm),
        span_mm=_span(xyz, ruler),
        has_body=has_body,
        at_end=low[2] == 0 or high[2] == shape[2],
        box=(slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])),
        number=number,
    )


def _span(xyz: npt.NDArray[np.intp], ruler: Ruler) -> tuple[float, float]:
    some = xyz[:: -(-len(xyz) // SPAN_SAMPLE)]
    first, last = np.quantile(ruler.places(some * ruler.spacing_mm), (SPAN_REST, 1 - SPAN_REST))
    return float(first), float(last)


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
                text = (
                    f"{name} appears twice, {away:.0f} mm apart along the canal ({part.voxels} voxels in the smaller)."
                )
                found.append(Finding("duplicate", code, text, part.voxels, (x, y, z)))
            elif part.volume_mm3 >= FRAGMENT_MM3 and not part.at_end:
                text = f"A fragment of {name} ({part.voxels} voxels) is apart from the rest of it."
                found.append(Finding("fragment", code, text, part.voxels, (x, y, z)))
    return found
