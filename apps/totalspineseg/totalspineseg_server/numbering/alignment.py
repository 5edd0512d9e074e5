"""Check whether another series lies where its coordinates say; otherwise its names would belong to other levels."""

from typing import Final

import numpy as np

from totalspineseg_server.anatomy import CANAL, CORD, DISCS
from totalspineseg_server.numbering import numbering_messages
from totalspineseg_server.numbering.evidence import Localizer
from totalspineseg_server.numbering.findings import Finding
from totalspineseg_server.transforms.canal import Floats, Ruler, canal_extent
from totalspineseg_server.transforms.labeling import UNNAMED
from totalspineseg_server.transforms.pieces import Pieces

ELSEWHERE: Final = "localizer_elsewhere"
"""Kind of the finding about a series that was not used."""
BESIDE_MM: Final = 8.0
"""Canals that are farther apart than this, mm, are different canals: about half the width of a canal, and more than
people move within an examination."""
MIN_SHARED_MM: Final = 15.0
"""Smallest common length of two canals that are compared, mm."""
BETWEEN_LEVELS: Final = 0.3
"""Discs that are farther from those of the series than this share of a level belong to no particular level."""
MIN_DISCS: Final = 3
"""Smallest number of discs that are compared."""


def misplaced(series: Localizer, pieces: Pieces, ruler: Ruler) -> str:
    """Return why a series does not lie where the scan does: it is from another patient, or the patient moved.

    A shift along the canal by exactly one level cannot be detected.

    Args:
        series: The series, on the grid of the map. Not modified.
        pieces: Pieces of the map.
        ruler: Canal of the map.

    Returns:
        The reason, for the reader; empty if the series seems to lie in its place.
    """
    beside = _beside_mm(series, ruler)
    if beside > BESIDE_MM:
        return numbering_messages.CANAL_BESIDE.format(mm=beside)
    if _off_levels(series, pieces, ruler) > BETWEEN_LEVELS:
        return numbering_messages.DISCS_BETWEEN
    return ""


def elsewhere_finding(series: Localizer, why: str) -> Finding:
    """Return the finding about a series that was not used."""
    name = numbering_messages.SERIES.format(source=series.source) if series.source else numbering_messages.LOCALIZER
    return Finding(ELSEWHERE, UNNAMED, numbering_messages.ELSEWHERE.format(series=name, why=why))


def _beside_mm(series: Localizer, ruler: Ruler) -> float:
    """Return the median distance between the canals in slices that show both, mm; 0 if there are too few."""
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
    """Return the median distance from this scan's discs to the nearest discs of the series, in levels; 0 if there are
    too few."""
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
    """Return the places of a series' discs along the canal, rising, mm."""
    codes = np.where(np.isin(series.codes, DISCS), series.codes, 0)
    xyz = np.argwhere(codes)
    owner = codes[tuple(xyz.T)].astype(np.intp)
    count = np.bincount(owner, minlength=1)
    present = np.flatnonzero(count)
    middles = np.stack([np.bincount(owner, xyz[:, axis])[present] / count[present] for axis in range(3)], axis=1)
    return np.sort(ruler.places(middles * ruler.spacing_mm)) if present.size else np.zeros(0)
