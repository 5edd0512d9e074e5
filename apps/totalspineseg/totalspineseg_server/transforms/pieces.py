"""Keep one spine in a step's label map, and find its connected pieces, superior to inferior, before they get names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import DISC_CLASSES, Kind, Step1, Step2
from totalspineseg_server.errors import NoSpineError
from totalspineseg_server.transforms.canal import CANAL_PART_VOX, CanalExtent, Ruler, canal_extent
from totalspineseg_server.transforms.components import (
    JOIN_LARGEST_VOX,
    Box,
    Labels,
    Mask,
    connected_components,
    foreground_box,
    gap_vox,
    labels_present,
    look_up,
)
from totalspineseg_server.transforms.piece_voxels import (
    Point,
    Tally,
    all_voxels,
    find_remnants,
    find_voxels,
    mean_of,
    tally_pieces,
)

Step = Literal[1, 2]

MIN_BODY_VOXELS: Final = 50
"""Smallest number of voxels in front of the canal that make a body; fewer are the tip of a process (mm3 at 1 mm)."""

MIN_BODY_MM3: Final = 600.0
"""Smallest volume in front of the canal that is a body; less is a remnant at the border of other vertebrae (a small C3
has 2000 mm3)."""
_IS_DISC: Final = np.isin(np.arange(256), DISC_CLASSES)
_KIND: Final = {Step2.VERTEBRA_ODD: Kind.VERTEBRA, Step2.VERTEBRA_EVEN: Kind.VERTEBRA, Step2.SACRUM: Kind.SACRUM}
MIN_DISC_VOX: Final = 300
"""Smallest number of disc voxels in a part of the spine (at 1 mm, mm3): half of a small disc."""
ASIDE_MM: Final = 15.0
"""How far to the side of the canal's end another part may begin if there is no gap, mm."""
ASIDE_SHARE: Final = 0.5
"""How much that distance grows for each mm of gap: a lordotic lumbar canal runs 30 degrees off the vertical."""


@dataclass(frozen=True)
class Piece:
    """One disc, one vertebra or one sacrum as the network drew it.

    Attributes:
        kind: ``DISC``, ``VERTEBRA`` or ``SACRUM``.
        voxels: Number of voxels, including the remnants assigned to the piece.
        centroid_vox: Center of mass of all voxels (x, y, z), voxel indices of the map.
        body_voxels: Voxels anterior to the canal and within its width; for a disc, all of them.
        body_centroid_vox: Center of mass of the body; None if no body is in view.
        z_order: Height by which pieces are ordered (voxel index, increasing toward superior): z of the centerline voxel
            nearest to the body, or to the whole piece if no body is in view. A vertebra whose body lies above the image
            is placed above its upper end, because its process hangs down to the bodies below.
        box: Smallest box that holds the piece.
        class_voxels: Network class -> number of its voxels in this piece (landmark classes of a disc; odd, even and
            remnant of a vertebra).
        parts: Number of connected components that were joined into this piece.
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
        vertebrae: The vertebrae and the sacrum (see ``Piece.kind``); empty in step 1.
    """

    shape: tuple[int, int, int]
    disc_map: npt.NDArray[np.int32]
    discs: tuple[Piece, ...]
    vertebra_map: npt.NDArray[np.int32] | None
    vertebrae: tuple[Piece, ...]


def canal_mask(raw: Labels, step: Step) -> Mask:
    """Return the canal and cord of a step's label map as a mask.

    Args:
        raw: uint8 (X, Y, Z), classes of the step's network. Not modified.
        step: 1 or 2.

    Returns:
        A new bool array.
    """
    canal, cord = (Step1.CANAL, Step1.CORD) if step == 1 else (Step2.CANAL, Step2.CORD)
    return np.asarray((raw == canal.value) | (raw == cord.value))


def require_spine(raw: Labels, step: Step) -> None:
    """Check that levels can be named in a map.

    Args:
        raw: uint8 (X, Y, Z), classes of the step's network. Not modified.
        step: 1 or 2.

    Raises:
        NoSpineError: The map has no disc, or neither canal nor cord.
    """
    present = labels_present(raw)
    canal, cord = (Step1.CANAL, Step1.CORD) if step == 1 else (Step2.CANAL, Step2.CORD)
    missing = []
    if not present[list(DISC_CLASSES)].any():
        missing.append("intervertebral disc")
    if not present[canal.value] and not present[cord.value]:
        missing.append("spinal canal")
    if missing:
        raise NoSpineError(
            f"Step {step} found no {' and no '.join(missing)} in this image. Check that it shows the spine and that "
            "its orientation and voxel size are right."
        )


def _height(point: Point, canal: CanalExtent) -> float:
    """Return the height along the canal, or z if there is no canal."""
    if len(canal.points) == 0:
        return point[2]
    nearest = np.argmin(((canal.points - np.array(point)) ** 2).sum(axis=1))
    return float(canal.points[nearest, 2])


def _is_cut_off(kind: Kind, box: Box, canal: CanalExtent) -> bool:
    """Return whether a piece without a body belongs to a vertebra that the upper end of the image cuts off."""
    return kind is Kind.VERTEBRA and canal.z.size > 0 and box[2].stop > int(canal.z[-1])


def _describe(tally: Tally, kinds: Sequence[Kind], canal: CanalExtent) -> list[Piece]:
    """Return the pieces of a tally; each must have a voxel."""
    pieces = []
    for k, kind in enumerate(kinds):
        size, body_size = int(tally.classes[k].sum()), int(tally.body_profiles[0][k].sum())
        center = mean_of(tally.profiles, k)
        body = mean_of(tally.body_profiles, k) if body_size >= MIN_BODY_VOXELS else None
        if kind is Kind.DISC:
            body, body_size = center, size
        box, height = tally.box(k), _height(center if body is None else body, canal)
        if body is None and _is_cut_off(kind, box, canal):
            height = float(canal.z[-1] + 1)
        per_class = {int(c): int(tally.classes[k, c]) for c in np.flatnonzero(tally.classes[k])}
        pieces.append(
            Piece(
                kind=kind,
                voxels=size,
                centroid_vox=center,
                body_voxels=0 if body is None else body_size,
                body_centroid_vox=body,
                z_order=height,
                box=box,
                class_voxels=MappingProxyType(per_class),
            )
        )
    return pieces


def _top_down(pieces: Sequence[Piece]) -> list[int]:
    """Return the indices of pieces from superior to inferior; the centroid decides between equal heights."""
    return sorted(range(len(pieces)), key=lambda k: (-pieces[k].z_order, -pieces[k].centroid_vox[2]))


def _find_discs(raw: Labels, canal: CanalExtent) -> tuple[npt.NDArray[np.int32], list[Piece]]:
    voxels = find_voxels(look_up(raw, _IS_DISC).view(np.bool_))
    found = _describe(tally_pieces(raw, voxels, canal), [Kind.DISC] * voxels.count, canal)
    order = _top_down(found)
    place = np.zeros(voxels.count, dtype=np.intp)
    place[order] = np.arange(voxels.count)
    return voxels.owned_by(place, voxels.count).number(raw.shape), [found[k] for k in order]


def _one_vertebra(upper: Piece, lower: Piece, disc_heights: Sequence[float]) -> bool:
    """Return whether two consecutive pieces of a class are one vertebra, unless both are bodies with a disc between
    them."""
    if upper.body_centroid_vox is None or lower.body_centroid_vox is None:
        return True
    return not any(lower.z_order < height < upper.z_order for height in disc_heights)


def _join(
    single: Sequence[Piece], class_of: Sequence[Step2], disc_heights: Sequence[float]
) -> tuple[npt.NDArray[np.intp], list[Step2]]:
    """Join consecutive pieces of one class; return the new index of each piece, and the classes of the joined
    pieces."""
    owner, classes = np.zeros(len(single), dtype=np.intp), list[Step2]()
    above: int | None = None
    for k in _top_down(single):
        same_class = above is not None and class_of[above] is class_of[k]
        if above is None or not same_class or not _one_vertebra(single[above], single[k], disc_heights):
            classes.append(class_of[k])
        owner[k] = len(classes) - 1
        above = k
    return owner, classes


def _find_vertebrae(
    raw: Labels, canal: CanalExtent, disc_heights: Sequence[float]
) -> tuple[npt.NDArray[np.int32], list[Piece]]:
    found = {value: find_voxels(raw == value.value) for value in _KIND}
    class_of = [value for value, part in found.items() for _ in range(part.count)]
    voxels = all_voxels(list(found.values()))
    single = tally_pieces(raw, voxels, canal)
    owner, classes = _join(_describe(single, [_KIND[c] for c in class_of], canal), class_of, disc_heights)
    tally = single.joined(owner, len(classes))
    numbered = voxels.owned_by(owner, len(classes)).number(raw.shape)
    remnants = find_remnants(raw, numbered, [tally.box(k) for k in range(len(classes))])
    numbered.ravel()[remnants.flat] = remnants.owner + 1
    tally = tally.plus(tally_pieces(raw, remnants, canal))
    pieces = _describe(tally, [_KIND[c] for c in classes], canal)
    return numbered, [replace(piece, parts=int((owner == k).sum())) for k, piece in enumerate(pieces)]


def _moved(piece: Piece, origin: tuple[int, int, int]) -> Piece:
    """Return a piece with the voxel indices of the whole map."""

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
        The pieces, superior to inferior. Components of fewer than 10 voxels are dropped. Consecutive vertebra pieces of
        the same odd/even class are joined unless they are two bodies with a disc between. Voxels of the class without
        odd/even go to the vertebra around them. A map without foreground has no pieces; without a canal, z alone orders
        them.

    Source:
        SPEC of the iterative labeling. Differences: a vertebra's body decides its place, and fewer pieces are joined
        (T13 and L1 share a class, as do the neighbors of a vertebra that the network missed).
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
        vertebra_map[box], vertebrae = _find_vertebrae(crop, canal, [disc.z_order for disc in discs])
    return Pieces(
        shape,
        disc_map,
        tuple(_moved(piece, origin) for piece in discs),
        vertebra_map,
        tuple(_moved(piece, origin) for piece in vertebrae),
    )


def one_spine(raw: Labels, step: Step) -> Labels:
    """Return the largest component of a map, and the parts of the spine above it, below it and between.

    Args:
        raw: uint8 (X, Y, Z) RAS, 1 mm, classes of the step's network. Not modified.
        step: 1 or 2.

    Returns:
        A new uint8 map, 0 elsewhere; all 0 for an empty map.

    Source:
        The reference keeps only the largest component, and so loses half of the spine behind metal that hides bone,
        discs and canal. Here another part must have canal and disc, must not have canal at the same height as the parts
        found before, and must begin near the end of that canal.
    """
    spine = np.zeros(raw.shape, dtype=np.uint8)
    box = foreground_box(raw)
    if box is None:
        return spine
    crop = np.ascontiguousarray(raw[box])
    numbered, count = connected_components(crop != 0, join_vox=JOIN_LARGEST_VOX)
    sizes = np.bincount(numbered[crop != 0], minlength=count + 1)
    largest = int(np.argmax(sizes))
    if count == 1:
        spine[box] = crop
        return spine
    canal = canal_mask(crop, step)
    of_canal = np.bincount(numbered[canal], minlength=count + 1)
    of_discs = np.bincount(numbered[np.isin(crop, DISC_CLASSES)], minlength=count + 1)
    parts = np.flatnonzero((of_canal >= CANAL_PART_VOX) & (of_discs >= MIN_DISC_VOX))
    mask = numbered == largest
    left = sorted((k for k in parts.tolist() if k != largest), key=lambda k: -sizes[k])
    while found := next((k for k in left if _goes_on(canal & (numbered == k), canal & mask)), None):
        left.remove(found)
        mask |= numbered == found
    spine[box] = crop * mask
    return spine


def _goes_on(part: Mask, canal: Mask) -> bool:
    """Return whether a piece of canal lies above, below or between the others, near their ends."""
    mine, its = (np.flatnonzero(mask.any(axis=(0, 1))) for mask in (part, canal))
    gap = gap_vox(mine, its)
    if not gap:
        return False
    end, next_to_it = (mine[0], mine[0] - gap) if mine[0] - gap in its else (mine[-1], mine[-1] + gap)
    aside = float(np.linalg.norm(_middle(part, int(end)) - _middle(canal, int(next_to_it))))
    return aside <= ASIDE_MM + ASIDE_SHARE * gap


def _middle(mask: Mask, z: int) -> npt.NDArray[np.float64]:
    return np.asarray(np.argwhere(mask[:, :, z]).mean(axis=0), dtype=np.float64)


def describe(kind: Kind, xyz: npt.NDArray[np.intp], raw: Labels, ruler: Ruler) -> Piece:
    """Return the piece that some voxels form.

    Args:
        kind: Disc, vertebra or sacrum.
        xyz: (n, 3) voxel indices, at least one. Not modified.
        raw: uint8 (X, Y, Z) RAS, network classes. Not modified.
        ruler: Canal of ``raw``.
    """
    center = xyz.mean(axis=0)
    body = xyz if kind is Kind.DISC else xyz[ruler.in_front(xyz)]
    has_body = kind is Kind.DISC or len(body) >= MIN_BODY_VOXELS
    middle = body.mean(axis=0) if has_body else center
    points = ruler.extent.points
    height = points[((points - middle) ** 2).sum(axis=1).argmin(), 2] if len(points) else middle[2]
    counts = np.bincount(raw[xyz[:, 0], xyz[:, 1], xyz[:, 2]])
    low, high = xyz.min(axis=0).tolist(), (xyz.max(axis=0) + 1).tolist()
    box: Box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    return Piece(
        kind=kind,
        voxels=len(xyz),
        centroid_vox=(float(center[0]), float(center[1]), float(center[2])),
        body_voxels=len(body) if has_body else 0,
        body_centroid_vox=(float(middle[0]), float(middle[1]), float(middle[2])) if has_body else None,
        z_order=float(height),
        box=box,
        class_voxels=MappingProxyType({int(c): int(counts[c]) for c in np.flatnonzero(counts)}),
    )


def with_plain_vertebrae(pieces: Pieces, raw: Labels, ruler: Ruler) -> Pieces:
    """Add every component of the class without odd/even that has a body and belongs to no vertebra.

    ``find_pieces`` gives voxels of that class to the vertebra around them, as TotalSpineSeg does. A whole vertebra of
    this class does not lie in another vertebra and would be lost.

    Args:
        pieces: From ``find_pieces``, step 2.
        raw: uint8 (X, Y, Z) RAS, step-2 classes. Not modified.
        ruler: Canal of ``raw``.

    Returns:
        The pieces, superior to inferior; the same object if there is none to add.
    """
    if pieces.vertebra_map is None:
        return pieces
    free = (raw == Step2.VERTEBRA.value) & (pieces.vertebra_map == 0)
    flat = np.flatnonzero(free)
    in_front = ruler.in_front(np.stack(np.unravel_index(flat, raw.shape), axis=1))
    if np.count_nonzero(in_front) * float(np.prod(ruler.spacing_mm)) < MIN_BODY_MM3:
        return pieces
    voxels = find_voxels(free)
    found = []
    for k in range(voxels.count):
        xyz = np.stack(np.unravel_index(voxels.flat[voxels.owner == k], raw.shape), axis=1)
        piece = describe(Kind.VERTEBRA, xyz, raw, ruler)
        if piece.body_voxels * float(np.prod(ruler.spacing_mm)) >= MIN_BODY_MM3:
            found.append((piece, xyz))
    if not found:
        return pieces
    everything: list[tuple[Piece, npt.NDArray[np.intp] | None]] = [
        *((piece, None) for piece in pieces.vertebrae),
        *found,
    ]
    order = sorted(range(len(everything)), key=lambda k: (-everything[k][0].z_order, -everything[k][0].centroid_vox[2]))
    rank = np.zeros(len(everything) + 1, dtype=np.int32)
    rank[np.array(order) + 1] = np.arange(1, len(everything) + 1)
    numbered = rank[pieces.vertebra_map]
    for k, (_, mine) in enumerate(everything):
        if mine is not None:
            numbered[mine[:, 0], mine[:, 1], mine[:, 2]] = rank[k + 1]
    return replace(pieces, vertebra_map=numbered, vertebrae=tuple(everything[k][0] for k in order))
