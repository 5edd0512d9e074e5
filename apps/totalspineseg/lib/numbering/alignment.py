"""Whether another series of the patient lies where its coordinates say: else its names belong to other levels."""

from typing import Final

import numpy as np

from lib.anatomy import CANAL, CORD, DISCS
from lib.numbering.course import Floats, Ruler
from lib.numbering.evidence import Localizer
from lib.numbering.findings import Finding
from lib.transforms.centerline import canal_extent
from lib.transforms.labeling import UNNAMED
from lib.transforms.pieces import Pieces

ELSEWHERE: Final = "localizer_elsewhere"
"""Kind of the finding about a series that was not used."""
BESIDE_MM: Final = 8.0
"""Two canals farther apart are not the same one, mm: about half the width of a canal, and more than people move within
an examination."""
MIN_SHARED_MM: Final = 15.0
"""Over a shorter stretch canals say nothing."""
BETWEEN_LEVELS: Final = 0.3
"""Discs that lie farther from those of the series belong to no level in particular, share of a level."""
MIN_DISCS: Final = 3
"""With fewer discs there is no telling."""


def misplaced(series: Localizer, pieces: Pieces, ruler: Ruler) -> str:
    """What shows that a series lies elsewhere than the scan: it is another patient's, or the patient was moved.

    A shift along the canal by a whole level cannot be seen.

    Args:
        series: On the grid of the map. Not modified.
        pieces: Those of the map.
        ruler: The canal of the map.

    Returns:
        What a reader is told; empty where nothing speaks against the series.
    """
    beside = _beside_mm(series, ruler)
    if beside > BESIDE_MM:
        return f"its canal lies {beside:.0f} mm beside the one of this scan"
    if _off_levels(series, pieces, ruler) > BETWEEN_LEVELS:
        return "its discs lie at the height of this scan's vertebrae"
    return ""


def elsewhere_finding(series: Localizer, why: str) -> Finding:
    """What a reader is told about a series that was not used."""
    name = f"The series {series.source}" if series.source else "The localizer"
    text = f"{name} was not used: {why}. It is another patient's, or the patient moved between the two."
    return Finding(ELSEWHERE, UNNAMED, text)


def _beside_mm(series: Localizer, ruler: Ruler) -> float:
    """Usual distance of the canals in the slices that show both, mm; 0 where they share too little."""
    other, own = canal_extent((series.codes == CANAL) | (series.codes == CORD)), ruler.extent
    shared, mine, its = np.intersect1d(own.z, other.z, assume_unique=True, return_indices=True)
    if shared.size * ruler.spacing_mm[2] < MIN_SHARED_MM:
        return 0.0
    x, y = (
        (first[mine] + last[mine] - other_first[its] - other_last[its]) / 2 * mm
        for first, last, other_first, other_last, mm in (
            (own.x_first, own.x_last, other.x_first, other.x_last, ruler.spacing_mm[0]),
            (own.y_first, own.y_last, other.y_first, other.y_last, ruler.spacing_mm[1]),
        )
    )
    return float(np.median(np.hypot(x, y)))


def _off_levels(series: Localizer, pieces: Pieces, ruler: Ruler) -> float:
    """Usual distance of this scan's discs from the nearest of the series, share of a level; 0 with too few."""
    its = _disc_places_mm(series, ruler)
    if its.size < MIN_DISCS or len(pieces.discs) < MIN_DISCS:
        return 0.0
    own = ruler.places(np.array([piece.centroid_vox for piece in pieces.discs]) * ruler.spacing_mm)
    below = np.searchsorted(its, own).clip(1, its.size - 1)
    level = its[below] - its[below - 1]
    away = np.minimum(np.abs(own - its[below - 1]), np.abs(own - its[below])) / level
    within = (own > its[0] - level / 2) & (own < its[-1] + level / 2)
    return float(np.median(away[within])) if np.count_nonzero(within) >= MIN_DISCS else 0.0


def _disc_places_mm(series: Localizer, ruler: Ruler) -> Floats:
    """Places along the canal of the middles of a series' discs, rising, mm."""
    codes = np.where(np.isin(series.codes, DISCS), series.codes, 0)
    xyz = np.argwhere(codes)
    owner = codes[tuple(xyz.T)].astype(np.intp)
    count = np.bincount(owner, minlength=1)
    shown = np.flatnonzero(count)
    middles = np.stack([np.bincount(owner, xyz[:, axis])[shown] / count[shown] for axis in range(3)], axis=1)
    return np.sort(ruler.places(middles * ruler.spacing_mm)) if shown.size else np.zeros(0)
