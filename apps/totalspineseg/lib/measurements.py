"""Sizes of discs, vertebral bodies, canal and cord, and the curves of the column, from a label map.

Everything is measured in the sagittal band around the canal's centerline, in the frame of each level, by
counting voxels (a mean thickness is a volume divided by an area): unlike the distance of two surface
voxels this has no error of half a voxel and needs no interpolation. Definitions and sources: docs/measurements.md.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lib.anatomy import (
    BY_CODE,
    CANAL,
    CODE_OF,
    CORD,
    DISCS,
    NAME_OF,
    VERTEBRAE,
)
from lib.geometry import LabelArray
from lib.transforms.centerline import smooth_centerline

Points = npt.NDArray[np.float64]

BAND_MM: Final = 5.0
"""Half width of the sagittal band: within it endplates are flat from left to right, and no pedicle reaches in."""
SLAB_MM: Final = 2.5
"""Half thickness of the slab across the canal."""
CHORD_MM: Final = 2.5
"""Half width of the band in which the canal's sagittal diameter is taken."""
DEPTH_PERCENTILES: Final = (1.0, 99.0)
"""The anterior and posterior edge of a body or disc: single voxels beyond them are osteophytes or noise."""
ZONES: Final[Mapping[str, tuple[float, float]]] = {
    "anterior": (0.1, 0.3),
    "middle": (0.4, 0.6),
    "posterior": (0.7, 0.9),
}
"""Where the heights of a body are taken, as shares of its depth; the rounded corners are left out."""
DISC_ZONE: Final = (0.2, 0.8)
"""Where the height of a disc is taken: its rims bulge and are thin."""
MIN_VOLUME_MM3: Final = 300.0
"""A smaller piece of a body or disc within the band is a remnant (the band of a C3 body holds about 2000)."""
EDGE_MM: Final = 2.0
"""What comes this near to the border of the image is cut off by it."""
MIN_DEPTH_MM: Final = 8.0
TANGENT_MM: Final = 10.0
"""Length of canal on either side that gives its direction."""
ANGLES: Final[Mapping[str, tuple[str, str, str, str]]] = {
    "cervical_lordosis_deg": ("C2", "inferior", "C7", "inferior"),
    "thoracic_kyphosis_deg": ("T4", "superior", "T12", "inferior"),
    "lumbar_lordosis_deg": ("L1", "superior", "L5-S", "inferior"),
}
"""Endplates of each curve's angle; the endplate of S1 is the lower surface of the disc on it."""
BODIES: Final = VERTEBRAE[2:]
"""Vertebrae whose body is measured: C1 has none, that of C2 carries the dens."""
KYPHOTIC: Final = frozenset({"thoracic_kyphosis_deg"})

COLUMNS: Final = (
    "level",
    "kind",
    "disc_height_mm",
    "body_anterior_mm",
    "body_middle_mm",
    "body_posterior_mm",
    "wedge_deg",
    "canal_ap_mm",
    "canal_area_mm2",
    "cord_area_mm2",
    *ANGLES,
    "note",
)
"""Columns of a row, after the scan's name."""
CORD_NOTE: Final = "cord area: not validated for cord cross-sectional area"
DOUBTFUL_NOTE: Final = "level not certain: not measured"
COLUMN_ROW: Final = "column"
"""Level of the row that holds what belongs to the whole column."""

Row = dict[str, Any]


@dataclass(frozen=True)
class _Frame:
    """A level's place in the sagittal plane: center (y, z) mm and unit directions."""

    center: Points
    anterior: Points
    superior: Points


@dataclass(frozen=True)
class _Profile:
    """A structure within the band, in its own frame, mm.

    Attributes:
        along: Anterior coordinate of every voxel, from the posterior edge.
        up: Superior coordinate of every voxel.
        depth: Distance of the two edges.
        footprint: Extent of a voxel along the anterior axis; a voxel at the edge of a zone counts in part.
        voxel_mm2: Volume of a voxel divided by the width of the band.
    """

    along: Points
    up: Points
    depth: float
    footprint: float
    voxel_mm2: float
    frame: _Frame

    def height(self, first: float, last: float) -> float:
        """Mean thickness between two shares of the depth, counted from the anterior edge."""
        low, high = (1 - last) * self.depth, (1 - first) * self.depth
        return float(_share(self.along, self.footprint, low, high).sum() * self.voxel_mm2 / (high - low))

    def endplate_angle(self, *, superior: bool) -> float:
        """Slope of a surface against the image's anterior axis, radians; positive: rises to anterior."""
        edges = np.linspace(0.1 * self.depth, 0.9 * self.depth, max(4, round(0.8 * self.depth)))
        cells = np.digitize(self.along, edges)
        centers, heights = [], []
        for k in range(1, len(edges)):
            inside = self.up[cells == k]
            if inside.size:
                centers.append((edges[k - 1] + edges[k]) / 2)
                heights.append(np.percentile(inside, 98 if superior else 2))
        slope = float(np.polyfit(centers, heights, 1)[0]) if len(centers) > 1 else 0.0
        direction = self.frame.anterior + slope * self.frame.superior
        return float(np.arctan2(direction[1], direction[0]))


def _share(position: Points, footprint: float, low: float, high: float) -> Points:
    """The part of each voxel that lies between two limits: 1 inside, 0 outside, in between at the limits."""
    overlap = np.minimum(position + footprint / 2, high) - np.maximum(position - footprint / 2, low)
    return np.asarray(np.clip(overlap / footprint, 0, 1))


class _Spine:
    """The voxels of a label map in mm, with the canal's centerline."""

    def __init__(self, labels: LabelArray, spacing: Sequence[float]) -> None:
        self.labels, self.mm = labels, np.asarray(spacing, dtype=np.float64)
        self.voxel_mm3 = float(np.prod(self.mm))
        canal = (labels == CANAL) | (labels == CORD)
        self.line = smooth_centerline(canal, float(spacing[2])) * self.mm
        self.canal = np.argwhere(canal)
        self.is_cord = labels[tuple(self.canal.T)] == CORD
        self.canal_mm = self.canal * self.mm
        at = np.argwhere(labels)
        codes = labels[tuple(at.T)]
        order = np.argsort(codes, kind="stable")
        self._at, codes = at[order], codes[order]
        self._start = np.searchsorted(codes, np.arange(257))

    def voxels(self, code: int) -> npt.NDArray[np.intp]:
        """(n, 3) voxel indices of a code."""
        return self._at[self._start[code] : self._start[code + 1]]

    def in_view(self, voxels: npt.NDArray[np.intp]) -> bool:
        """Whether the structure ends inside the image, above, below, in front and behind."""
        margin = EDGE_MM / self.mm[1:]
        last = np.array(self.labels.shape)[1:] - 1
        low, high = voxels[:, 1:].min(axis=0), voxels[:, 1:].max(axis=0)
        return bool((low >= margin).all() and (high <= last - margin).all())

    def line_at(self, z_mm: Points) -> tuple[Points, Points]:
        """x and y of the centerline at given heights, mm."""
        x = np.interp(z_mm, self.line[:, 2], self.line[:, 0])
        return x, np.interp(z_mm, self.line[:, 2], self.line[:, 1])

    def band(self, code: int) -> tuple[Points, bool]:
        """(n, 2) sagittal positions (y, z) mm of the body or disc within the band; whether it is all in view."""
        voxels = self.voxels(code)
        position = voxels * self.mm
        x, y = self.line_at(position[:, 2])
        # Half open: on a 1 mm grid exactly 2 * BAND_MM wide.
        inside = (position[:, 0] - x >= -BAND_MM) & (position[:, 0] - x < BAND_MM) & (position[:, 1] > y)
        return position[inside][:, 1:], bool(inside.any()) and self.in_view(voxels[inside])


def measure(labels: LabelArray, spacing: Sequence[float], *, doubtful: Collection[int] = ()) -> list[Row]:
    """Measure a labeled spine.

    Args:
        labels: uint8 (X, Y, Z) codes of a step-2 result, nearest RAS. Not modified.
        spacing: Voxel size, mm.
        doubtful: Codes whose level is not certain; their rows stay empty, as do angles that need them.

    Returns:
        One row per vertebra and disc, superior to inferior, then one of the whole column; keys are
        ``COLUMNS``, values rounded to 0.01, None where something is not in view or not certain. Empty
        without canal.
    """
    spine = _Spine(labels, spacing)
    present = [code for code in (*VERTEBRAE, *DISCS) if len(spine.voxels(code))]
    if len(spine.line) == 0 or not present:
        return []
    profiles = _profiles(spine, present)
    heights = {code: float(spine.voxels(code)[:, 2].mean()) for code in present}
    rows = [
        _row(spine, code, profiles.get(code), code in doubtful)
        for code in sorted(present, key=lambda code: -heights[code])
    ]
    return [*rows, _column_row(profiles, doubtful)]


def _profiles(spine: _Spine, codes: Collection[int]) -> dict[int, _Profile]:
    """Profiles of the bodies and discs that are wholly in view and have a neighbor to take a direction from."""
    bands = {code: band for code in codes if len((band := spine.band(code))[0]) * spine.voxel_mm3 >= MIN_VOLUME_MM3}
    order = sorted(bands, key=lambda code: -float(bands[code][0][:, 1].mean()))
    centers = np.array([bands[code][0].mean(axis=0) for code in order]).reshape(-1, 2)
    profiles = {}
    for k, code in enumerate(order):
        points, whole = bands[code]
        above, below = centers[max(k - 1, 0)], centers[min(k + 1, len(order) - 1)]
        if not whole or len(order) < 2 or (code in VERTEBRAE and not _between_discs(order, k)):
            continue
        superior = (above - below) / np.linalg.norm(above - below)
        profile = _profile(points, _Frame(centers[k], np.array([superior[1], -superior[0]]), superior), spine)
        if profile.depth >= MIN_DEPTH_MM:
            profiles[code] = profile
    return profiles


def _between_discs(order: Sequence[int], k: int) -> bool:
    """Whether a body has a disc on both sides, which proves that neither endplate is cut off."""
    return 0 < k < len(order) - 1 and order[k - 1] in DISCS and order[k + 1] in DISCS


def _profile(points: Points, frame: _Frame, spine: _Spine) -> _Profile:
    along = (points - frame.center) @ frame.anterior
    low, high = np.percentile(along, DEPTH_PERCENTILES)
    up = (points - frame.center) @ frame.superior
    footprint = float(np.abs(frame.anterior) @ spine.mm[1:])
    low, high = low - footprint / 2, high + footprint / 2
    return _Profile(along - low, up, float(high - low), footprint, spine.voxel_mm3 / (2 * BAND_MM), frame)


def _row(spine: _Spine, code: int, profile: _Profile | None, doubtful: bool) -> Row:
    row: Row = {**dict.fromkeys(COLUMNS), "level": NAME_OF[code], "kind": BY_CODE[code].kind.value}
    if doubtful:
        return row | {"note": DOUBTFUL_NOTE}
    if profile is not None and code in DISCS:
        row["disc_height_mm"] = profile.height(*DISC_ZONE)
    elif profile is not None and code in BODIES:
        row |= {f"body_{zone}_mm": profile.height(*shares) for zone, shares in ZONES.items()}
        centers = {zone: sum(shares) / 2 for zone, shares in ZONES.items()}
        run = (centers["posterior"] - centers["anterior"]) * profile.depth
        row["wedge_deg"] = np.degrees(np.arctan2(row["body_posterior_mm"] - row["body_anterior_mm"], run))
    row |= _canal(spine, code)
    if row["cord_area_mm2"] is not None:
        row["note"] = CORD_NOTE
    return _rounded(row)


def _canal(spine: _Spine, code: int) -> Row:
    """Canal and cord across the canal's own direction, at the centerline point nearest to the level."""
    points, _ = spine.band(code)
    empty: Row = dict.fromkeys(("canal_ap_mm", "canal_area_mm2", "cord_area_mm2"))
    if len(points) * spine.voxel_mm3 < MIN_VOLUME_MM3:
        return empty
    at = int(np.argmin(((spine.line[:, 1:] - points.mean(axis=0)) ** 2).sum(axis=1)))
    reach = round(TANGENT_MM / spine.mm[2])
    low, high = max(at - reach, 0), min(at + reach, len(spine.line) - 1)
    direction = spine.line[high] - spine.line[low]
    length = float(np.linalg.norm(direction))
    if min(at - low, high - at) * spine.mm[2] < 2 * SLAB_MM or length == 0:
        return empty  # the canal ends within the slab
    offset = spine.canal_mm - spine.line[at]
    direction = direction / length
    slab = _share(offset @ direction, float(np.abs(direction) @ spine.mm), -SLAB_MM, SLAB_MM)
    chord = slab * _share(offset[:, 0], float(spine.mm[0]), -CHORD_MM, CHORD_MM)
    area = spine.voxel_mm3 / (2 * SLAB_MM)
    return {
        "canal_ap_mm": float(chord.sum()) * area / (2 * CHORD_MM),
        "canal_area_mm2": float(slab.sum()) * area,
        "cord_area_mm2": float(slab[spine.is_cord].sum()) * area or None,
    }


def _column_row(profiles: Mapping[int, _Profile], doubtful: Collection[int]) -> Row:
    """Angles of the curves whose both ends are in view and certain."""
    row: Row = {**dict.fromkeys(COLUMNS), "level": COLUMN_ROW, "kind": COLUMN_ROW}
    for name, (first, first_side, last, last_side) in ANGLES.items():
        upper, lower = CODE_OF[first], CODE_OF[last]
        if {upper, lower} <= profiles.keys() and not {upper, lower} & set(doubtful):
            opening = profiles[upper].endplate_angle(superior=first_side == "superior")
            opening -= profiles[lower].endplate_angle(superior=last_side == "superior")
            row[name] = np.degrees(-opening if name in KYPHOTIC else opening)
    return _rounded(row)


def _rounded(row: Row) -> Row:
    return {key: round(float(v), 2) if isinstance(v, (float, np.floating)) else v for key, v in row.items()}
