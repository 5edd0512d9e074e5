"""The connected pieces of a step's label map, superior to inferior, before they get names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lib.anatomy import DISC_CLASSES, Kind, Step1, Step2
from lib.errors import NoSpineError
from lib.transforms.centerline import CanalExtent, canal_extent
from lib.transforms.components import Box, Labels, Mask, connected_components, foreground_box, look_up
from lib.transforms.remnants import assign_remnants
from lib.transforms.tally import Tally, tally_pieces

Point = tuple[float, float, float]
Step = Literal[1, 2]

JOIN_VOX: Final = 1
"""Components that touch once each has grown by one voxel are one: networks leave cracks of 1-2 mm."""
MIN_PIECE_VOXELS: Final = 10
"""Smaller components are noise (mm3 at 1 mm)."""
MIN_BODY_VOXELS: Final = 50
"""Fewer voxels in front of the canal are the tip of a process, not a body (mm3 at 1 mm)."""

_IS_DISC: Final = np.isin(np.arange(256), DISC_CLASSES)
_KIND: Final = {Step2.VERTEBRA_ODD: Kind.VERTEBRA, Step2.VERTEBRA_EVEN: Kind.VERTEBRA, Step2.SACRUM: Kind.SACRUM}


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


def _height(point: Point, canal: CanalExtent) -> float:
    """Height along the canal; without a canal simply z."""
    if len(canal.points) == 0:
        return point[2]
    nearest = np.argmin(((canal.points - np.array(point)) ** 2).sum(axis=1))
    return float(canal.points[nearest, 2])


def _mean(sums: npt.NDArray[np.float64], size: int) -> Point:
    x, y, z = (sums / size).tolist()
    return x, y, z


def _describe(tally: Tally, boxes: Sequence[Box], kinds: Sequence[Kind], canal: CanalExtent) -> list[Piece]:
    """The pieces of a tally; every one has a voxel."""
    pieces = []
    for k, (box, kind) in enumerate(zip(boxes, kinds, strict=True)):
        size, body_size = int(tally.sizes[k]), int(tally.body_sizes[k])
        center = _mean(tally.sums[k], size)
        body = _mean(tally.body_sums[k], body_size) if body_size >= MIN_BODY_VOXELS else None
        if kind is Kind.DISC:
            body, body_size = center, size
        pieces.append(
            Piece(
                kind=kind,
                voxels=size,
                centroid_vox=center,
                body_voxels=0 if body is None else body_size,
                body_centroid_vox=body,
                z_order=_height(center if body is None else body, canal),
                box=box,
                class_voxels=MappingProxyType(
                    {int(c): int(tally.classes[k, c]) for c in np.flatnonzero(tally.classes[k])}
                ),
            )
        )
    return pieces


def _top_down(pieces: Sequence[Piece]) -> list[int]:
    """Indices of pieces superior to inferior; the centroid decides between equal heights."""
    return sorted(range(len(pieces)), key=lambda k: (-pieces[k].z_order, -pieces[k].centroid_vox[2]))


def _boxes(numbered: npt.NDArray[np.int32]) -> list[Box]:
    return [(box[0], box[1], box[2]) for box in ndimage.find_objects(numbered)]


def _renumbered(numbered: npt.NDArray[np.generic], table: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int32]:
    """A map with every number replaced by its entry in the table; 0 stays 0."""
    renumbered = np.zeros(numbered.shape, dtype=np.int32)
    # Most of a map is empty: only what is not gets looked up.
    inside = np.flatnonzero(numbered)
    renumbered.ravel()[inside] = table[numbered.ravel()[inside]]
    return renumbered


def _number(mask: Mask, into: npt.NDArray[np.int32], start: int) -> int:
    """Number the components of a mask that are large enough from ``start`` + 1; returns the last number."""
    box = foreground_box(mask)
    if box is None:
        return start
    numbered, count = connected_components(np.ascontiguousarray(mask[box]), join_vox=JOIN_VOX)
    sizes = np.bincount(numbered[numbered > 0], minlength=count + 1)
    large = sizes >= MIN_PIECE_VOXELS
    into[box] += _renumbered(numbered, np.where(large, start + np.cumsum(large), 0))
    return start + int(large.sum())


def _find_discs(raw: Labels, canal: CanalExtent) -> tuple[npt.NDArray[np.int32], list[Piece]]:
    numbered = np.zeros(raw.shape, dtype=np.int32)
    count = _number(look_up(raw, _IS_DISC).view(np.bool_), numbered, 0)
    found = _describe(tally_pieces(raw, numbered, count, canal), _boxes(numbered), [Kind.DISC] * count, canal)
    order = _top_down(found)
    place = np.zeros(count + 1, dtype=np.int32)
    place[[k + 1 for k in order]] = np.arange(1, count + 1)
    return _renumbered(numbered, place), [found[k] for k in order]


def _join(single: Sequence[Piece], class_of: Sequence[Step2]) -> tuple[list[int], list[Step2]]:
    """Consecutive pieces of one class are one: the new index of each, and the classes of the joined ones."""
    owner, classes = [0] * len(single), list[Step2]()
    for k in _top_down(single):
        if not classes or classes[-1] is not class_of[k]:
            classes.append(class_of[k])
        owner[k] = len(classes) - 1
    return owner, classes


def _find_vertebrae(raw: Labels, canal: CanalExtent) -> tuple[npt.NDArray[np.int32], list[Piece]]:
    numbered = np.zeros(raw.shape, dtype=np.int32)
    class_of: list[Step2] = []
    for value in (Step2.VERTEBRA_ODD, Step2.VERTEBRA_EVEN, Step2.SACRUM):
        count = _number(raw == value.value, numbered, len(class_of))
        class_of += [value] * (count - len(class_of))
    single_tally = tally_pieces(raw, numbered, len(class_of), canal)
    single = _describe(single_tally, _boxes(numbered), [_KIND[c] for c in class_of], canal)
    owner, classes = _join(single, class_of)
    joined = _renumbered(numbered, np.array([0, *(k + 1 for k in owner)]))
    remnants = assign_remnants(raw, joined, _boxes(joined))
    tally = single_tally.joined(np.array(owner, dtype=np.intp), len(classes))
    tally = tally.plus(tally_pieces(raw, remnants, len(classes), canal))
    joined += remnants
    pieces = _describe(tally, _boxes(joined), [_KIND[c] for c in classes], canal)
    return joined, [replace(piece, parts=owner.count(k)) for k, piece in enumerate(pieces)]


def _moved(piece: Piece, origin: tuple[int, int, int]) -> Piece:
    """The piece in the indices of the whole map."""

    def moved(point: Point) -> Point:
        return point[0] + origin[0], point[1] + origin[1], point[2] + origin[2]

    x, y, z = (slice(s.start + o, s.stop + o) for s, o in zip(piece.box, origin, strict=True))
    body = piece.body_centroid_vox
    return replace(
        piece,
        centroid_vox=moved(piece.centroid_vox),
        body_centroid_vox=None if body is None else moved(body),
        z_order=piece.z_order + origin[2],
        box=(x, y, z),
    )


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
    disc_map = np.zeros(shape, dtype=np.int32)
    vertebra_map = np.zeros(shape, dtype=np.int32) if step == 2 else None
    box = foreground_box(raw)
    if box is None:
        return Pieces(shape, disc_map, (), vertebra_map, ())
    crop = np.ascontiguousarray(raw[box])
    canal = canal_extent(canal_mask(crop, step))
    origin = (box[0].start, box[1].start, box[2].start)
    disc_map[box], discs = _find_discs(crop, canal)
    vertebrae: list[Piece] = []
    if vertebra_map is not None:
        vertebra_map[box], vertebrae = _find_vertebrae(crop, canal)
    return Pieces(
        shape,
        disc_map,
        tuple(_moved(piece, origin) for piece in discs),
        vertebra_map,
        tuple(_moved(piece, origin) for piece in vertebrae),
    )
