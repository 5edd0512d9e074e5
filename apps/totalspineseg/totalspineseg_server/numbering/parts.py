"""Find the connected parts of each code in a label map: whole structures, duplicates, fragments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from totalspineseg_server.anatomy import BY_CODE, C1, CANAL, CORD, SACRUM, VERTEBRAE, Kind
from totalspineseg_server.numbering import numbering_messages
from totalspineseg_server.numbering.findings import Finding
from totalspineseg_server.transforms.canal import Floats, Ruler, ruler_along, ruler_of
from totalspineseg_server.transforms.components import CONNECTIVITY, Box, connected_components

Indices = npt.NDArray[np.intp]

JOIN_VOX: Final = 1
"""Parts that touch after each has grown by a voxel count as one, as in ``find_pieces``."""
FRAGMENT_MM3: Final = 30.0
"""Smallest loose part that is reported; smaller ones are ragged borders and not worth a reader's time."""
DUPLICATE_SHARE: Final = 0.35
"""Smallest share of the largest part with which a second part looks like another level of the same name, not like a
fragment."""
DUPLICATE_MM: Final = 8.0
"""Smallest distance along the canal between the centers of such parts: half the smallest level."""
BODY_VOXELS: Final = 50
"""Smallest number of voxels in front of the canal that make a body; fewer are the tip of a process."""
MIN_CANAL_SHARE: Final = 0.8
"""Smallest share of the levels along which a canal must be drawn to be used as a ruler for them."""
BODY_SHARE: Final = 0.6
"""If there is no canal, a vertebra that is thinner than this share of the usual thickness in its map shows no body,
because processes and arches are half as thick."""
CORE_SHARE: Final = 0.8
"""Voxels deeper below the surface than this share of the greatest depth are the core of a vertebra, inside its body."""
MAX_BODY_DEPTH_MM: Final = 45.0
"""Largest depth of a body, which is up to 38 mm; a body with its arch is deeper."""
ARCH_DROP_MM: Final = 40.0
"""Largest distance of an arch's middle below its body."""
ARCH_RISE_MM: Final = 10.0
"""Largest distance of an arch's middle above its body."""
VERTEBRAE_BELOW_C1: Final = frozenset(VERTEBRAE) - {C1}

SPAN_REST: Final = 0.05
"""Share of a part's voxels that may lie beyond its span at either end."""
SPAN_SAMPLE: Final = 1000
"""Number of voxels that are used to measure a span."""


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


def _is_arch(part: Part, body: Part) -> bool:
    """Return whether a part is the arch of a body; in the few slices beside the midline nothing joins the two."""
    return (
        BY_CODE[part.code].kind is Kind.VERTEBRA
        and body.has_body
        and body.depth_mm <= MAX_BODY_DEPTH_MM
        and part.box[1].stop <= body.box[1].start
        and -ARCH_RISE_MM <= part.place_mm - body.place_mm <= ARCH_DROP_MM
    )


def fragments(parts: Mapping[int, tuple[Part, ...]], origin: npt.NDArray[np.intp]) -> list[Finding]:
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
            x, y, z = (np.round(largest.center_vox).astype(int) + origin).tolist()
            text = numbering_messages.TOO_SMALL.format(name=name, voxels=largest.voxels)
            found.append(Finding("fragment", code, text, largest.voxels, (x, y, z)))
        for part in rest:
            if _is_arch(part, largest):
                continue
            x, y, z = (np.round(part.center_vox).astype(int) + origin).tolist()
            away = abs(part.place_mm - largest.place_mm)
            if part.voxels >= DUPLICATE_SHARE * largest.voxels and away >= DUPLICATE_MM:
                text = numbering_messages.DUPLICATE.format(name=name, mm=away, voxels=part.voxels)
                found.append(Finding("duplicate", code, text, part.voxels, (x, y, z)))
            elif part.volume_mm3 >= FRAGMENT_MM3 and not part.is_cut:
                text = numbering_messages.FRAGMENT.format(name=name, voxels=part.voxels)
                found.append(Finding("fragment", code, text, part.voxels, (x, y, z)))
    return found
