"""Renumber a labeled map around levels a reader has fixed: new names, the same voxels, no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lib.anatomy import (
    BACKGROUND,
    BY_CODE,
    C1,
    CANAL,
    CORD,
    NAME_OF,
    SACRUM,
    STEP1_FROM_CODE,
    STEP2_FROM_CODE,
    Kind,
    Step1,
    Step2,
)
from lib.errors import GridError, LabelError
from lib.numbering.chain import Numbering, number_evidence
from lib.numbering.course import Floats, ruler_of
from lib.numbering.divide import divide
from lib.numbering.evidence import PIN_REACH_MM, Pin, gather
from lib.numbering.parts import DUPLICATE_MM, DUPLICATE_SHARE, Part, levels_in
from lib.transforms.components import Labels
from lib.transforms.pieces import Piece, Pieces, Step

RENAMED_SHARE: Final = 0.7
"""A segment was renamed when this share of its voxels carries one new name; the rest is redrawn border."""
RENAMED_VOXELS: Final = 20
"""Fewer voxels are a brush stroke."""


@dataclass(frozen=True)
class Renamed:
    """A segment whose name a reader changed.

    Attributes:
        old: Code it had.
        new: Code it has now.
        voxels: Voxels that carry the new code.
        point_vox: One of them, near their middle.
    """

    old: int
    new: int
    voxels: int
    point_vox: tuple[int, int, int]


def renumber(labels: npt.NDArray[np.integer[Any]], pins: Sequence[Pin], *, affine: Floats) -> tuple[Labels, Numbering]:
    """Rename every level of a map so that the pinned ones carry their names.

    Args:
        labels: Codes (X, Y, Z) nearest RAS, of either step. Not modified.
        pins: At least one level with a point inside or near it.
        affine: (4, 4) voxel -> RAS mm.

    Returns:
        A new uint8 map with the same structures under new names (what is no level is unchanged), and the
        numbering behind it.

    Raises:
        ValueError: No pin is given, or one does not name a level.
        LabelError: A pin lies near no structure of its kind.
    """
    if not pins:
        raise ValueError("at least one pinned level is required, got none")
    levels = [pin for pin in pins if pin.code in BY_CODE and BY_CODE[pin.code].kind not in (Kind.CORD, Kind.CANAL)]
    if len(levels) != len(pins):
        raise ValueError(f"a pin must name a vertebra, a disc or the sacrum, got code {[p.code for p in pins]!r}")
    codes = np.where((labels >= 0) & (labels <= np.iinfo(np.uint8).max), labels, BACKGROUND).astype(np.uint8)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    step, pieces = _pieces(codes, spacing)
    ruler = ruler_of((codes == CANAL) | (codes == CORD), spacing)
    # Vertebrae of one name that touch are cut at the disc between them; old classes are no evidence.
    pieces = divide(pieces, np.zeros_like(codes), ruler)
    evidence = gather(pieces, _classes(codes, step), step, affine=affine, ruler=ruler, pins=pins)
    numbering = number_evidence(pieces, evidence, keep_all=True)
    for pin in pins:
        named = numbering.naming.discs + numbering.naming.vertebrae
        if pin.code not in named and not (step == 1 and pin.code == C1):
            raise LabelError(
                f"a pin within {PIN_REACH_MM:.0f} mm of a {BY_CODE[pin.code].kind.value} is required for "
                f"{NAME_OF[pin.code]}, got {tuple(round(v, 1) for v in pin.point_mm)} mm; click inside the structure"
            )
    result = codes.copy()
    for numbered, names in (
        (pieces.disc_map, numbering.naming.discs),
        (pieces.vertebra_map, numbering.naming.vertebrae),
    ):
        if numbered is not None and names:
            renamed = np.array([BACKGROUND, *names], dtype=np.uint8)[numbered]
            np.copyto(result, renamed, where=renamed != BACKGROUND)
    return result, numbering


def find_renamed(old: npt.NDArray[np.integer[Any]], new: npt.NDArray[np.integer[Any]]) -> tuple[Renamed, ...]:
    """Segments whose name a reader changed.

    Args:
        old: Codes (X, Y, Z) as predicted. Not modified.
        new: Codes of the corrected map on the same grid. Not modified.

    Returns:
        The renamed segments, the largest first; empty where no name changed (redrawn borders do not count).

    Raises:
        GridError: The maps differ in shape.
    """
    if old.shape != new.shape:
        raise GridError(f"two maps of one grid are required, got shapes {old.shape} and {new.shape}")
    changed = np.flatnonzero((old != new).ravel())
    before, after = old.ravel()[changed], new.ravel()[changed]
    sizes = np.bincount(np.clip(old.ravel(), 0, 255), minlength=256)
    found = []
    for code, structure in BY_CODE.items():
        mine = before == code
        if structure.kind in (Kind.CORD, Kind.CANAL) or mine.sum() < RENAMED_VOXELS:
            continue
        values, counts = np.unique(after[mine], return_counts=True)
        name, voxels = int(values[counts.argmax()]), int(counts.max())
        same_kind = name in BY_CODE and (BY_CODE[name].kind is Kind.DISC) == (structure.kind is Kind.DISC)
        level = same_kind and BY_CODE[name].kind not in (Kind.CORD, Kind.CANAL)
        if level and voxels >= max(RENAMED_VOXELS, RENAMED_SHARE * sizes[code]):
            xyz = np.stack(np.unravel_index(changed[mine][after[mine] == name], old.shape), axis=1)
            x, y, z = xyz[((xyz - xyz.mean(axis=0)) ** 2).sum(axis=1).argmin()].tolist()
            found.append(Renamed(code, name, voxels, (x, y, z)))
    return tuple(sorted(found, key=lambda renamed: -renamed.voxels))


def pin_from_corrected(
    old: npt.NDArray[np.integer[Any]], new: npt.NDArray[np.integer[Any]], *, affine: Floats
) -> Pin | None:
    """The level a reader fixed by renaming one segment of a predicted map.

    Args:
        old: Codes as predicted. Not modified.
        new: Codes of the corrected map on the same grid. Not modified.
        affine: (4, 4) voxel -> RAS mm.

    Returns:
        The pin; None unless exactly one segment changed its name (a reader who renamed several has
        numbered them all).

    Raises:
        GridError: The maps differ in shape.
    """
    renamed = find_renamed(old, new)
    return _pin(renamed[0], affine) if len(renamed) == 1 else None


def renumber_corrected(
    old: npt.NDArray[np.integer[Any]], new: npt.NDArray[np.integer[Any]], *, affine: Floats
) -> tuple[Labels, Numbering] | None:
    """Renumber a corrected map around the one segment its reader renamed; redrawn borders stay.

    Args:
        old: Codes as predicted. Not modified.
        new: Codes of the corrected map on the same grid. Not modified.
        affine: (4, 4) voxel -> RAS mm.

    Returns:
        The renumbered map and its numbering; None unless exactly one segment changed its name.

    Raises:
        GridError: The maps differ in shape.
    """
    renamed = find_renamed(old, new)
    if len(renamed) != 1:
        return None
    # The renamed segment may now carry its neighbor's name: its own old name keeps the two apart.
    apart = np.where((old == renamed[0].old) & (new == renamed[0].new), old, new)
    return renumber(apart, [_pin(renamed[0], affine)], affine=affine)


def _pin(renamed: Renamed, affine: Floats) -> Pin:
    x, y, z, _ = (affine @ np.array([*renamed.point_vox, 1.0])).tolist()
    return Pin(renamed.new, (x, y, z))


def _classes(codes: Labels, step: Step) -> Labels:
    """Network classes of a labeled map; only canal, cord and (step 1) bone and C1 are looked at."""
    table = np.zeros(256, dtype=np.uint8)
    if step == 1:
        for code, value in STEP1_FROM_CODE.items():
            table[code] = value
        table[[CANAL, CORD]] = [Step1.CANAL.value, Step1.CORD.value]
    else:
        for code, value in STEP2_FROM_CODE.items():
            table[code] = value
        table[[CANAL, CORD]] = [Step2.CANAL.value, Step2.CORD.value]
    return table[codes]


def _pieces(codes: Labels, spacing: Floats) -> tuple[Step, Pieces]:
    """One piece per level; what appears twice far apart gives two."""
    parts, numbered = levels_in(codes, spacing)
    step: Step = 2 if any(BY_CODE[code].kind is Kind.VERTEBRA and code != C1 for code in parts) else 1
    shape = (codes.shape[0], codes.shape[1], codes.shape[2])
    groups: dict[bool, list[list[Part]]] = {True: [], False: []}
    for code, found in parts.items():
        is_disc = BY_CODE[code].kind is Kind.DISC
        if step == 1 and not is_disc:
            continue
        mine = [[found[0]]]
        for part in found[1:]:
            far = abs(part.place_mm - found[0].place_mm) >= DUPLICATE_MM
            if far and part.voxels >= DUPLICATE_SHARE * found[0].voxels:
                mine.append([part])
            else:
                mine[0].append(part)
        groups[is_disc] += mine
    maps, lists = {}, {}
    for is_disc, found_groups in groups.items():
        found_groups.sort(key=lambda group: group[0].place_mm)
        table = np.zeros(int(numbered.max()) + 1, dtype=np.int32)
        for k, group in enumerate(found_groups, start=1):
            table[[part.number for part in group]] = k
        maps[is_disc] = table[numbered]
        lists[is_disc] = tuple(_piece(group) for group in found_groups)
    if step == 1:
        return step, Pieces(shape, maps[True], lists[True], None, ())
    return step, Pieces(shape, maps[True], lists[True], maps[False], lists[False])


def _piece(group: Sequence[Part]) -> Piece:
    largest = group[0]
    code_kind = BY_CODE[largest.code].kind
    box = tuple(
        slice(min(part.box[a].start for part in group), max(part.box[a].stop for part in group)) for a in range(3)
    )
    return Piece(
        kind=Kind.SACRUM if largest.code == SACRUM else code_kind,
        voxels=sum(part.voxels for part in group),
        centroid_vox=largest.center_vox,
        body_voxels=largest.voxels if largest.has_body else 0,
        body_centroid_vox=largest.center_vox if largest.has_body else None,
        z_order=largest.center_vox[2],
        box=(box[0], box[1], box[2]),
        class_voxels=MappingProxyType({}),
    )
