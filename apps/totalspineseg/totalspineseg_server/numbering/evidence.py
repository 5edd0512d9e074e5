"""Measure the evidence of a map, piece by piece, as numbers that the chain model can weigh."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import BY_CODE, DISC_CLASSES, LANDMARK_CLASS, Kind, Step1, Step2
from totalspineseg_server.transforms.canal import Ruler
from totalspineseg_server.transforms.components import Box
from totalspineseg_server.transforms.pieces import Piece, Pieces, Step
from totalspineseg_server.trust import UNMEASURED, Certainty, Trust

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.uint8]

END_MM: Final = 2.0
"""Distance from the first or last slice below which the field of view cuts a piece off."""
MIN_C1_VOLUME_MM3: Final = 100.0
"""Smallest volume of the class C1 that is not a speck."""
FAR_MM: Final = 45.0
FAR_BEYOND_MM: Final = 90.0
"""A piece this far beside the line of the discs is skin, bowel or bladder: more than half a vertebral body lies
between. (Above and below the discs the second number counts, because the sacrum turns away.)"""
FAR_PROCESS_MM: Final = 75.0
"""The same for a piece that consists only of processes, whose tips lie up to 70 mm behind the discs."""
MIN_TILTED_VOXELS: Final = 100
MIN_TILTED_MM: Final = 15.0
MIN_FLAT: Final = 1.5
"""The angle of a disc is not measured if it has fewer voxels, if it is shorter from front to back, or if it is less
than this factor longer than thick."""
MIDLINE_MM: Final = 8.0
"""Largest distance from the midline of the part of a body whose depth is measured."""
DEPTH_BANDS: Final = ((0.1, 0.35), (0.65, 0.9))
"""Parts of a body's height, from superior to inferior, in which its depth is measured."""
MIN_BAND_VOXELS: Final = 100
"""Smallest number of voxels of such a part whose depth is measured; in a lumbar body it has some 3000 (16 x 6 x 30
mm)."""
LOCALIZER_MIN_SHARE: Final = 0.10
"""Smallest share of its volume that a piece must share with the levels of a localizer to be compared with them."""


@dataclass(frozen=True)
class Pin:
    """A level that a reader fixes by its name and a point in it.

    Attributes:
        code: Code of a vertebra or disc, or the sacrum.
        point_mm: A point in that structure, RAS mm of the map's affine.
    """

    code: int
    point_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Localizer:
    """Another series of the patient that has names.

    Attributes:
        codes: Its codes (X, Y, Z) on the grid of the map.
        names: Code -> the probability of each name for the structure that has the code; a code that is not listed is
            certain. Names by a reader are certain; predicted names have the probability of the prediction.
        source: Its name in a report.
        by_reader: Whether a reader finished it: then a single level decides as much as many.
    """

    codes: npt.NDArray[np.integer[Any]]
    names: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    source: str = ""
    by_reader: bool = False


@dataclass(frozen=True)
class Step1Names:
    """The names of step 1, or of a reader who corrected it, in the scan whose step-2 map is named.

    Attributes:
        discs: The discs, with the probability of every name; they have no source, because they are not another series.
        probability: Probability that all its names are right.
        certainty: How certain the names of step 1 are by themselves.
        usual: Probability that all its names are right if the column has the usual count.
        as_usual: Probability that the column has the usual count.
        landmarks: Codes of the landmark discs on which step 1 found their own class.
    """

    discs: Localizer
    probability: float
    certainty: Certainty
    usual: float = 0.0
    as_usual: float = 0.0
    landmarks: frozenset[int] = frozenset()

    @property
    def confident(self) -> bool:
        """Whether the names of step 1 are certain by themselves."""
        return self.certainty == "certain"

    @property
    def by_reader(self) -> bool:
        """Whether the names are a reader's: then they are certain, and step 2 cannot doubt them."""
        return self.discs.by_reader

    def part(self, box: Box) -> "Step1Names":
        """Return the names on a part of the grid."""
        return replace(self, discs=replace(self.discs, codes=self.discs.codes[box]))


@dataclass(frozen=True)
class Overlap:
    """The overlap of a piece with the levels of a localizer.

    Attributes:
        shares: Code -> share of the overlap; empty if the piece touches none of the levels.
        localizer: The series.
    """

    shares: Mapping[int, float]
    localizer: Localizer


@dataclass(frozen=True)
class Item:
    """A piece in the form that the chain uses.

    Attributes:
        kind: Disc, vertebra or sacrum.
        index: Index in ``Pieces.discs`` or ``Pieces.vertebrae``; -1 for C1 of a step-1 map.
        place_mm: Distance along the canal, increasing toward inferior.
        cut: Whether the field of view cuts it off.
        width_mm: Lateral extent.
        volume_mm3: Volume.
        landmarks: Disc code -> share of the piece in that landmark's class; empty if classes are unknown.
        odd: Share of odd among odd and even voxels; None if there are neither.
        sacral: Share of a bone that is drawn as sacrum.
        overlaps: Overlap with each localizer.
        pin: Codes that a pin leaves possible; empty without a pin.
        is_c1: Whether the network labeled it C1.
        tilt_deg: How far the front of a disc is lower than its back, as an angle; None if the disc is too small.
        is_far: Whether it is so far beside the discs that it cannot be part of the column.
        taper: Depth of a body between two discs near the upper one, divided by that near the lower one, at the midline;
            None if it is too small. The body of S1 tapers, those above it hardly do.
    """

    kind: Kind
    index: int
    place_mm: float
    cut: bool
    width_mm: float
    volume_mm3: float
    landmarks: Mapping[int, float] = field(default_factory=dict)
    odd: float | None = None
    overlaps: tuple[Overlap, ...] = ()
    pin: frozenset[int] = frozenset()
    is_c1: bool = False
    tilt_deg: float | None = None
    is_far: bool = False
    taper: float | None = None
    sacral: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """Everything that is known about a map.

    Attributes:
        step: 1 or 2.
        items: Pieces with a place in the column, superior to inferior.
        specks: Pieces too small to be a structure.
        loose: Vertebra pieces without a body in view (processes only), which are named after the chain: index -> place
            along the canal, mm. Those far beside the column are left out.
        pinned_loose: Index of such a piece -> the code that a pin gives it.
        above_mm: Length of the column in view above the first item; 0 if the items themselves show it.
        below_mm: The same below the last item.
        trust: Measured errors of the network that made the map.
    """

    step: Step
    items: tuple[Item, ...]
    specks: tuple[Item, ...]
    loose: Mapping[int, float]
    above_mm: float
    below_mm: float
    trust: Trust = UNMEASURED
    pinned_loose: Mapping[int, int] = field(default_factory=dict)


def gather(
    pieces: Pieces,
    raw: Labels,
    step: Step,
    *,
    ruler: Ruler,
    localizers: Sequence[Localizer] = (),
    trust: Trust = UNMEASURED,
) -> Evidence:
    """Measure every piece.

    Args:
        pieces: From ``find_pieces``.
        raw: uint8 (X, Y, Z) RAS, the step's classes. Not modified.
        step: 1 or 2.
        ruler: Canal of ``raw``.
        localizers: Other series of the patient on the same grid. Not modified.
        trust: Measured errors of the network that made the map.

    Returns:
        The evidence; it has no items if there are no pieces.
    """
    seen = _Seen(pieces, raw, ruler, localizers)
    items = [seen.item(piece, k) for k, piece in enumerate(pieces.discs)]
    loose: dict[int, float] = {}
    highest = max((p.z_order for p in pieces.vertebrae), default=0.0)
    for k, piece in enumerate(pieces.vertebrae):
        if piece.body_centroid_vox is not None or piece.kind is Kind.SACRUM or seen.is_atlas(piece, highest):
            items.append(seen.item(piece, k))
        elif not seen.is_far(piece, FAR_PROCESS_MM):
            loose[k] = seen.place(piece.centroid_vox)
    if step == 1:
        items += seen.c1()
    specks = tuple(item for item in items if _is_speck(item, items))
    items = [item for item in items if item not in specks]
    items.sort(key=lambda item: item.place_mm)
    items = seen.with_tapers(items)
    above, below = seen.bone_beyond(items) if step == 1 else (0.0, 0.0)
    return Evidence(step, tuple(items), specks, loose, above, below, trust)


ATLAS_WIDTH_MM: Final = 55.0
"""Smallest width of C1, which is 60-80 mm wide; a piece that consists only of processes is narrower, or lies at the end
of the view."""


SPECK_SHARE: Final = 0.04
"""Smallest share of the usual volume of its kind that a component must have; smaller ones are specks and get no
name."""


def _is_speck(item: Item, items: Sequence[Item]) -> bool:
    if item.cut or item.is_c1:
        return False
    same = [other.volume_mm3 for other in items if other.kind is item.kind and not other.cut]
    return len(same) >= MIN_TO_COMPARE and item.volume_mm3 < SPECK_SHARE * float(np.median(same))


MIN_TO_COMPARE: Final = 3
"""Smallest number of pieces of a kind that have a usual volume."""


class _Seen:
    """A map with its ruler, which measures pieces one by one."""

    def __init__(
        self,
        pieces: Pieces,
        raw: Labels,
        ruler: Ruler,
        localizers: Sequence[Localizer],
    ) -> None:
        self.pieces, self.raw, self.ruler, self.spacing = pieces, raw, ruler, ruler.spacing_mm
        self.localizers = localizers

    def place(self, point_vox: npt.ArrayLike) -> float:
        return self.ruler.place(np.asarray(point_vox) * self.spacing)

    def is_atlas(self, piece: Piece, highest: float) -> bool:
        """Return whether a topmost piece without a body is an atlas whose anterior arch is missing."""
        width_mm = (piece.box[0].stop - piece.box[0].start) * self.spacing[0]
        return piece.z_order >= highest and width_mm >= ATLAS_WIDTH_MM and not self._is_cut(piece)

    def _is_cut(self, piece: Piece) -> bool:
        end = END_MM / self.spacing[2]
        return bool(piece.box[2].start < end or piece.box[2].stop > self.raw.shape[2] - end)

    def item(self, piece: Piece, index: int) -> Item:
        inside = self._mask(piece, index)
        sides = [(s.stop - s.start) * mm for s, mm in zip(piece.box, self.spacing, strict=True)]
        return Item(
            kind=piece.kind,
            index=index,
            place_mm=self.place(piece.body_centroid_vox or piece.centroid_vox),
            cut=self._is_cut(piece),
            width_mm=sides[0],
            volume_mm3=piece.voxels * float(np.prod(self.spacing)),
            landmarks=landmark_shares(piece) if piece.kind is Kind.DISC else {},
            odd=odd_share(piece) if piece.kind is not Kind.DISC else None,
            sacral=sacral_share(piece) if piece.kind is not Kind.DISC else 0.0,
            overlaps=tuple(Overlap(self._shares(o.codes, piece, inside), o) for o in self.localizers),
            tilt_deg=tilt_deg(inside, self.spacing) if piece.kind is Kind.DISC else None,
            is_far=self.is_far(piece),
        )

    def with_tapers(self, items: Sequence[Item]) -> list[Item]:
        """Return items in which each body between two discs has its taper."""
        discs = np.array([item.place_mm for item in items if item.kind is Kind.DISC])
        course, bone = self.ruler.course, self.pieces.vertebra_map
        if course is None or bone is None or not discs.size:
            return list(items)
        xyz = np.argwhere(bone)
        xyz = xyz[self.ruler.in_front(xyz)]
        beside = np.abs(xyz[:, 0] - self.ruler.middle(xyz[:, 2])) * self.spacing[0]
        points = xyz[beside <= MIDLINE_MM] * self.spacing
        heights, away = course.locate_and_measure(points)
        result = []
        for item in items:
            below = int(np.searchsorted(discs, item.place_mm))
            if item.kind is not Kind.DISC and 0 < below < discs.size:
                inside = (heights > discs[below - 1]) & (heights < discs[below])
                relative = (heights[inside] - discs[below - 1]) / (discs[below] - discs[below - 1])
                item = replace(item, taper=taper(relative, away[inside]))
            result.append(item)
        return result

    def is_far(self, piece: Piece, limit_mm: float = FAR_MM) -> bool:
        """Return whether a piece is so far beside the discs that it cannot be part of the column."""
        if len(self.pieces.discs) < MIN_TO_COMPARE:
            return False
        discs = np.array([disc.centroid_vox for disc in self.pieces.discs]) * self.spacing
        discs = discs[np.argsort(discs[:, 2])]
        x, y, z = np.asarray(piece.body_centroid_vox or piece.centroid_vox) * self.spacing
        beside = np.hypot(x - np.interp(z, discs[:, 2], discs[:, 0]), y - np.interp(z, discs[:, 2], discs[:, 1]))
        within = discs[0, 2] <= z <= discs[-1, 2]
        return bool(beside > (limit_mm if within else FAR_BEYOND_MM))

    def _mask(self, piece: Piece, index: int) -> npt.NDArray[np.bool_]:
        numbered = self.pieces.disc_map if piece.kind is Kind.DISC else self.pieces.vertebra_map
        if numbered is None:
            raise ValueError("expected a vertebra map for pieces with vertebrae, got None")
        return np.asarray(numbered[piece.box] == index + 1)

    def _shares(
        self, codes: npt.NDArray[np.integer[Any]], piece: Piece, inside: npt.NDArray[np.bool_]
    ) -> dict[int, float]:
        counts = np.bincount(np.clip(codes[piece.box][inside], 0, 255), minlength=256)
        levels = {c: int(counts[c]) for c, s in BY_CODE.items() if counts[c] and s.kind not in (Kind.CORD, Kind.CANAL)}
        total = sum(levels.values())
        if total < LOCALIZER_MIN_SHARE * piece.voxels:
            return {}
        return {code: n / total for code, n in levels.items()}

    def c1(self) -> list[Item]:
        """Return C1 of a step-1 map, which has a class but no piece; empty if it is only a speck."""
        mask = self.raw == Step1.C1.value
        volume = float(mask.sum()) * float(np.prod(self.spacing))
        if volume < MIN_C1_VOLUME_MM3:
            return []
        xyz = np.argwhere(mask)
        width = (np.ptp(xyz[:, 0]) + 1) * self.spacing[0]
        cut = bool(xyz[:, 2].max() + END_MM / self.spacing[2] >= self.raw.shape[2])
        return [Item(Kind.VERTEBRA, -1, self.place(xyz.mean(axis=0)), cut, float(width), volume, is_c1=True)]

    def bone_beyond(self, items: Sequence[Item]) -> tuple[float, float]:
        """Return the length of vertebral bodies in view beyond the first and the last item, mm."""
        extent = self.ruler.extent
        if not items or extent.z.size == 0:
            return 0.0, 0.0
        rows = range(extent.z.size)
        ends = [next((c for c in map(self._front, order) if c is not None), None) for order in (rows[::-1], rows)]
        top, bottom = ((self.place(c) if c is not None else None) for c in ends)
        above = 0.0 if top is None else max(0.0, items[0].place_mm - top)
        return above, 0.0 if bottom is None else max(0.0, bottom - items[-1].place_mm)

    def _front(self, row: int) -> Floats | None:
        """Return the middle of the bone in front of the canal in one slice, or None if there is no bone."""
        z, canal_y = int(self.ruler.extent.z[row]), int(self.ruler.extent.y_last[row])
        front = self.raw[:, canal_y + 1 :, z]
        bone = (front == Step1.VERTEBRAE.value) | (front == Step1.C1.value)
        if not bone.any():
            return None
        x, y = np.argwhere(bone).mean(axis=0)
        return np.array([x, y + canal_y + 1, z])


def taper(heights: Floats, away_mm: Floats) -> float | None:
    """Return how much deeper a body is near its upper end than near its lower end.

    Args:
        heights: (n,) height of each voxel, from 0 at the upper disc to 1 at the lower one. Not modified.
        away_mm: (n,) distance of each from the canal. Not modified.

    Returns:
        The ratio; None for a body that is too small.
    """
    depths = []
    for first, last in DEPTH_BANDS:
        band = away_mm[(heights >= first) & (heights < last)]
        if band.size < MIN_BAND_VOXELS:
            return None
        # Ragged outlines must not count.
        depths.append(max(1.0, float(np.ptp(np.quantile(band, (0.1, 0.9))))))
    return depths[0] / depths[1]


def tilt_deg(disc: npt.NDArray[np.bool_], spacing_mm: npt.ArrayLike) -> float | None:
    """Return the angle of a disc in a lateral view.

    Args:
        disc: bool (X, Y, Z) RAS. Not modified.
        spacing_mm: (3,) voxel size.

    Returns:
        Degrees by which its front is lower than its back; None for a piece that is short from front to back.
    """
    seen = np.argwhere(disc)[:, 1:] * np.asarray(spacing_mm)[1:]
    if len(seen) < MIN_TILTED_VOXELS:
        return None
    lengths, axes = np.linalg.eigh(np.cov(seen.T))
    forward, up = axes[:, 1]
    # The standard deviation of a line is its length divided by the square root of twelve.
    if math.sqrt(12 * max(lengths[1], 0.0)) < MIN_TILTED_MM or lengths[1] < MIN_FLAT**2 * lengths[0]:
        return None
    return math.degrees(math.atan2(-up, forward) if forward > 0 else math.atan2(up, -forward))


def landmark_shares(piece: Piece) -> dict[int, float]:
    """Return landmark disc -> share of a disc's voxels in its class."""
    total = sum(piece.class_voxels.get(c, 0) for c in DISC_CLASSES)
    return {code: piece.class_voxels.get(c, 0) / total for c, code in LANDMARK_CLASS.items()} if total else {}


def odd_share(piece: Piece) -> float | None:
    """Return the share of odd among a vertebra's odd and even voxels; None if it has neither."""
    odd = piece.class_voxels.get(Step2.VERTEBRA_ODD.value, 0)
    even = piece.class_voxels.get(Step2.VERTEBRA_EVEN.value, 0)
    return odd / (odd + even) if odd + even else None


def sacral_share(piece: Piece) -> float:
    """Return the share of a bone's voxels that are drawn as sacrum."""
    return piece.class_voxels.get(Step2.SACRUM.value, 0) / piece.voxels
