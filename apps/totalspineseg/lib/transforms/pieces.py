"""The connected pieces of a step's label map, superior to inferior, before they get names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from lib.anatomy import DISC_CLASSES, Kind, Step1, Step2
from lib.errors import NoSpineError
from lib.transforms.centerline import CanalExtent, canal_extent
from lib.transforms.components import Box, Labels, Mask, connected_components, dilate_faces, foreground_box

Point = tuple[float, float, float]
Step = Literal[1, 2]

JOIN_VOX: Final = 1
"""Components that touch once each has grown by one voxel are one: networks leave cracks of 1-2 mm."""
MIN_PIECE_VOXELS: Final = 10
"""Smaller components are noise (mm3 at 1 mm)."""
MIN_BODY_VOXELS: Final = 50
"""Fewer voxels in front of the canal are the tip of a process, not a body (mm3 at 1 mm)."""

_DISCS: Final = np.isin(np.arange(256), DISC_CLASSES)


@dataclass(frozen=True)
class Piece:
    """One disc, one vertebra or one sacrum as the network drew it.

    Attributes:
        kind: ``DISC``, ``VERTEBRA`` or ``SACRUM``.
        voxels: Number of voxels; remnants assigned to the piece count.
        centroid_vox: Center of mass of all voxels (x, y, z), voxel indices of the map.
        body_voxels: Voxels anterior to the canal and within its width; of a disc, all of them.
        body_centroid_vox: Center of mass of those; None where the piece has no body in view.
        z_order: Height the order is decided by (voxel index, rising to superior): z of the centerline
            voxel nearest to the body, or to the whole piece where no body is in view.
        box: Smallest box that holds the piece.
        class_voxels: Network class -> voxels of it in this piece (landmark classes of a disc,
            odd / even / remnant of a vertebra).
        parts: Connected components joined into this piece.
    """

    kind: Kind
    voxels: int
    centroid_vox: Point
    body_voxels: int
    body_centroid_vox: Point | None
    z_order: float
    box: Box
    class_voxels: Mapping[int, int]
    parts: int = 1


@dataclass(frozen=True)
class Pieces:
    """All pieces of one label map, each list superior to inferior.

    Attributes:
        shape: Shape of the map.
        disc_map: int32; value k is ``discs[k - 1]``, 0 is none.
        discs: The discs.
        vertebra_map: int32; value k is ``vertebrae[k - 1]``, 0 is none. None in step 1, whose network
            does not separate vertebrae.
        vertebrae: The vertebrae and the sacrum (``Piece.kind`` tells which); empty in step 1.
    """

    shape: tuple[int, int, int]
    disc_map: npt.NDArray[np.int32]
    discs: tuple[Piece, ...]
    vertebra_map: npt.NDArray[np.int32] | None
    vertebrae: tuple[Piece, ...]


@dataclass(frozen=True)
class _Voxels:
    """The voxels of many pieces as a list: where they are, what class, and whose (0-based)."""

    flat: npt.NDArray[np.intp]
    xyz: npt.NDArray[np.intp]
    classes: Labels
    owner: npt.NDArray[np.intp]


def canal_mask(raw: Labels, step: Step) -> Mask:
    """Canal or cord in a step's label map.

    Args:
        raw: uint8 (X, Y, Z), classes of the step's network. Not modified.
        step: 1 or 2.

    Returns:
        A new bool array.
    """
    canal, cord = (Step1.CANAL, Step1.CORD) if step == 1 else (Step2.CANAL, Step2.CORD)
    return np.asarray((raw == canal.value) | (raw == cord.value))


def require_spine(raw: Labels, step: Step) -> None:
    """Refuse a map in which no level can be named.

    Args:
        raw: uint8 (X, Y, Z), classes of the step's network. Not modified.
        step: 1 or 2.

    Raises:
        NoSpineError: The map has no disc, or neither canal nor cord.
    """
    present = np.bincount(raw.ravel(order="K"), minlength=256) > 0
    canal, cord = (Step1.CANAL, Step1.CORD) if step == 1 else (Step2.CANAL, Step2.CORD)
    missing = []
    if not present[list(DISC_CLASSES)].any():
        missing.append("intervertebral disc")
    if not present[canal.value] and not present[cord.value]:
        missing.append("spinal canal")
    if missing:
        raise NoSpineError(
            f"a spine MRI with at least one disc and the spinal canal is required, got no {' and no '.join(missing)} "
            f"in step {step}; check that the image shows the spine and that its orientation is right"
        )


def _boxes(xyz: npt.NDArray[np.intp], owner: npt.NDArray[np.intp], count: int) -> tuple[Box, ...]:
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(count))
    low = np.minimum.reduceat(xyz[order], starts, axis=0)
    high = np.maximum.reduceat(xyz[order], starts, axis=0) + 1
    return tuple((slice(a, d), slice(b, e), slice(c, f)) for (a, b, c), (d, e, f) in zip(low.tolist(), high.tolist(), strict=True))


def _is_body(xyz: npt.NDArray[np.intp], canal: CanalExtent) -> Mask:
    """Anterior to the canal and within its width, at the voxel's own height (or the nearest with canal)."""
    if canal.z.size == 0:
        return np.zeros(len(xyz), dtype=np.bool_)
    upper = np.searchsorted(canal.z, np.arange(xyz[:, 2].max() + 1)).clip(max=canal.z.size - 1)
    lower = (upper - 1).clip(min=0)
    heights = np.arange(upper.size)
    nearest = np.where(np.abs(canal.z[upper] - heights) <= np.abs(canal.z[lower] - heights), upper, lower)
    row = nearest[xyz[:, 2]]
    x = xyz[:, 0]
    return np.asarray(
        (xyz[:, 1] > canal.y_last[row]) & (x >= canal.x_first[row]) & (x <= canal.x_last[row]), dtype=np.bool_
    )


def _means(xyz: npt.NDArray[np.intp], owner: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.float64]:
    sizes = np.bincount(owner, minlength=count)
    sums = np.stack([np.bincount(owner, weights=xyz[:, a], minlength=count) for a in range(3)], axis=1)
    return np.asarray(sums / np.maximum(sizes, 1)[:, None], dtype=np.float64)


def _height(point: npt.NDArray[np.float64], canal: CanalExtent) -> float:
    """Height along the canal; without a canal simply z."""
    if len(canal.points) == 0:
        return float(point[2])
    nearest = np.argmin(((canal.points - point) ** 2).sum(axis=1))
    return float(canal.points[nearest, 2])


def _describe(voxels: _Voxels, kinds: Sequence[Kind], parts: Sequence[int], canal: CanalExtent) -> tuple[Piece, ...]:
    """Measure every piece; ``kinds`` and ``parts`` are given per owner, every owner has a voxel."""
    count = len(kinds)
    if count == 0:
        return ()
    sizes = np.bincount(voxels.owner, minlength=count)
    centers = _means(voxels.xyz, voxels.owner, count)
    body = _is_body(voxels.xyz, canal)
    body_sizes = np.bincount(voxels.owner[body], minlength=count)
    body_centers = _means(voxels.xyz[body], voxels.owner[body], count)
    width = int(voxels.classes.max()) + 1
    classes = np.bincount(voxels.owner * width + voxels.classes, minlength=count * width).reshape(count, width)
    pieces = []
    for k, box in enumerate(_boxes(voxels.xyz, voxels.owner, count)):
        center, size = centers[k], int(body_sizes[k])
        body_center: npt.NDArray[np.float64] | None = body_centers[k] if size >= MIN_BODY_VOXELS else None
        if kinds[k] is Kind.DISC:
            body_center, size = center, int(sizes[k])
        per_class = {int(c): int(classes[k, c]) for c in np.flatnonzero(classes[k])}
        pieces.append(
            Piece(
                kind=kinds[k],
                voxels=int(sizes[k]),
                centroid_vox=_point(center),
                body_voxels=size if body_center is not None else 0,
                body_centroid_vox=None if body_center is None else _point(body_center),
                z_order=_height(center if body_center is None else body_center, canal),
                box=box,
                class_voxels=MappingProxyType(per_class),
                parts=parts[k],
            )
        )
    return tuple(pieces)


def _point(values: npt.NDArray[np.float64]) -> Point:
    return float(values[0]), float(values[1]), float(values[2])


def _components_of(raw: Labels, mask: Mask) -> _Voxels:
    """Voxels of the components of a mask that are large enough; owners 0.. in no particular order."""
    empty = np.zeros(0, dtype=np.intp)
    box = foreground_box(mask)
    if box is None:
        return _Voxels(empty, np.zeros((0, 3), dtype=np.intp), np.zeros(0, dtype=np.uint8), empty)
    numbered, count = connected_components(np.ascontiguousarray(mask[box]), join_vox=JOIN_VOX)
    inside = np.flatnonzero(numbered)
    component = numbered.ravel()[inside]
    sizes = np.bincount(component, minlength=count + 1)
    sizes[0] = 0
    large = sizes >= MIN_PIECE_VOXELS
    rank = np.cumsum(large) - 1
    keep = large[component]
    local = np.stack(np.unravel_index(inside[keep], numbered.shape), axis=1)
    xyz = local + np.array([s.start for s in box])
    flat = np.ravel_multi_index((xyz[:, 0], xyz[:, 1], xyz[:, 2]), raw.shape)
    return _Voxels(flat, xyz, raw.ravel()[flat], rank[component[keep]])


def _top_down(pieces: Sequence[Piece]) -> list[int]:
    """Indices of pieces superior to inferior; the centroid decides between equal heights."""
    return sorted(range(len(pieces)), key=lambda k: (-pieces[k].z_order, -pieces[k].centroid_vox[2]))


def _renumber(voxels: _Voxels, new_owner: Sequence[int]) -> _Voxels:
    owner = np.asarray(new_owner, dtype=np.intp)[voxels.owner] if len(new_owner) else voxels.owner
    return _Voxels(voxels.flat, voxels.xyz, voxels.classes, owner)


def _map_of(voxels: _Voxels, shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
    numbered = np.zeros(shape, dtype=np.int32)
    numbered.ravel()[voxels.flat] = voxels.owner + 1
    return numbered


def _concatenate(parts: Sequence[_Voxels], counts: Sequence[int]) -> _Voxels:
    shifts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return _Voxels(
        np.concatenate([p.flat for p in parts]),
        np.concatenate([p.xyz for p in parts]),
        np.concatenate([p.classes for p in parts]),
        np.concatenate([p.owner + shift for p, shift in zip(parts, shifts.tolist(), strict=True)]),
    )


def _find_discs(raw: Labels, canal: CanalExtent) -> tuple[npt.NDArray[np.int32], tuple[Piece, ...]]:
    voxels = _components_of(raw, _DISCS[raw])
    count = int(voxels.owner.max()) + 1 if voxels.owner.size else 0
    found = _describe(voxels, [Kind.DISC] * count, [1] * count, canal)
    order = _top_down(found)
    place = [order.index(k) for k in range(count)]
    return _map_of(_renumber(voxels, place), raw.shape), tuple(found[k] for k in order)


def _between_extremes(mask: Mask) -> Mask:
    """Voxels between two voxels of the mask along x, along y or along z."""
    filled = mask.copy()
    for axis in range(3):
        turned = np.moveaxis(mask, axis, 0)
        forward = np.logical_or.accumulate(turned, axis=0)
        backward = np.logical_or.accumulate(turned[::-1], axis=0)[::-1]
        np.moveaxis(filled, axis, 0)[...] |= forward & backward
    return filled


def _assign_remnants(raw: Labels, numbered: npt.NDArray[np.int32], pieces: Sequence[Piece]) -> npt.NDArray[np.int32]:
    """Give voxels without odd/even class to the piece around them; superior pieces win."""
    assigned = numbered.copy()
    for k in range(len(pieces), 0, -1):
        box = tuple(
            slice(max(s.start - 1, 0), min(s.stop + 1, size))
            for s, size in zip(pieces[k - 1].box, raw.shape, strict=True)
        )
        remnants = raw[box] == Step2.VERTEBRA.value
        if remnants.any():
            reach = dilate_faces(_between_extremes(numbered[box] == k))
            assigned[box][remnants & reach] = k
    return assigned


def _find_vertebrae(raw: Labels, canal: CanalExtent) -> tuple[npt.NDArray[np.int32], tuple[Piece, ...]]:
    classes = (Step2.VERTEBRA_ODD, Step2.VERTEBRA_EVEN, Step2.SACRUM)
    found = [_components_of(raw, raw == c.value) for c in classes]
    counts = [int(v.owner.max()) + 1 if v.owner.size else 0 for v in found]
    class_of = [c for c, count in zip(classes, counts, strict=True) for _ in range(count)]
    voxels = _concatenate(found, counts)
    single = _describe(voxels, [_kind(c) for c in class_of], [1] * len(class_of), canal)
    new_owner, parts, merged_classes = [0] * len(single), [], []
    for k in _top_down(single):
        if merged_classes and merged_classes[-1] is class_of[k]:
            parts[-1] += 1
        else:
            merged_classes.append(class_of[k])
            parts.append(1)
        new_owner[k] = len(parts) - 1
    kinds = [_kind(c) for c in merged_classes]
    merged = _renumber(voxels, new_owner)
    numbered = _assign_remnants(raw, _map_of(merged, raw.shape), _describe(merged, kinds, parts, canal))
    flat = np.flatnonzero(numbered)
    xyz = np.stack(np.unravel_index(flat, raw.shape), axis=1)
    full = _Voxels(flat, xyz, raw.ravel()[flat], numbered.ravel()[flat].astype(np.intp) - 1)
    return numbered, _describe(full, kinds, parts, canal)


def _kind(step2_class: Step2) -> Kind:
    return Kind.SACRUM if step2_class is Step2.SACRUM else Kind.VERTEBRA


def find_pieces(raw: Labels, step: Step) -> Pieces:
    """Separate the discs and, in step 2, the vertebrae of a label map and order them.

    Args:
        raw: uint8 (X, Y, Z) RAS 1 mm, classes of the step's network. Not modified.
        step: 1 or 2.

    Returns:
        The pieces, superior to inferior. Components under 10 voxels are dropped; consecutive vertebra
        pieces of the same odd/even class are joined; voxels of the class without odd/even go to the
        vertebra around them. No foreground gives no pieces; without canal, z alone orders.

    Source:
        SPEC of the iterative labeling; differs in that a vertebra's body decides its place.
    """
    shape = (raw.shape[0], raw.shape[1], raw.shape[2])
    box = foreground_box(raw)
    disc_map = np.zeros(shape, dtype=np.int32)
    vertebra_map = np.zeros(shape, dtype=np.int32) if step == 2 else None
    if box is None:
        return Pieces(shape, disc_map, (), vertebra_map, ())
    crop = np.ascontiguousarray(raw[box])
    canal = canal_extent(canal_mask(crop, step))
    origin = (box[0].start, box[1].start, box[2].start)
    disc_map[box], discs = _find_discs(crop, canal)
    vertebrae: tuple[Piece, ...] = ()
    if vertebra_map is not None:
        vertebra_map[box], vertebrae = _find_vertebrae(crop, canal)
    return Pieces(
        shape,
        disc_map,
        tuple(_moved(p, origin) for p in discs),
        vertebra_map,
        tuple(_moved(p, origin) for p in vertebrae),
    )


def _moved(piece: Piece, origin: tuple[int, int, int]) -> Piece:
    """The piece in the indices of the whole map."""

    def moved(point: Point) -> Point:
        return point[0] + origin[0], point[1] + origin[1], point[2] + origin[2]

    x, y, z = (slice(s.start + o, s.stop + o) for s, o in zip(piece.box, origin, strict=True))
    return Piece(
        piece.kind,
        piece.voxels,
        moved(piece.centroid_vox),
        piece.body_voxels,
        None if piece.body_centroid_vox is None else moved(piece.body_centroid_vox),
        piece.z_order + origin[2],
        (x, y, z),
        piece.class_voxels,
        piece.parts,
    )
