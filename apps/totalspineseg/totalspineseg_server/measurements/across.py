"""Measure canal and cord at a level, across the canal's own direction."""

from typing import Final

import numpy as np

from totalspineseg_server.measurements.measured_spine import Spine, share
from totalspineseg_server.measurements.profile import MIN_VOLUME_MM3

SLAB_MM: Final = 2.5
"""Half the thickness of the slab across the canal."""
CHORD_MM: Final = 2.5
"""Half the width of the band in which the canal's sagittal diameter is measured."""
TANGENT_MM: Final = 10.0
"""Length of canal on either side that determines its direction."""


def across(spine: Spine, code: int) -> dict[str, float | None]:
    """Measure canal and cord across the canal's own direction, at the centerline point nearest to the level.

    Args:
        spine: The label map.
        code: A vertebra or disc.

    Returns:
        Sagittal diameter of the canal (mm), area of canal and of cord (mm2). None if the level's piece is a remnant, if
        the canal is missing, cut off or ends there, and for a missing cord.
    """
    points, _ = spine.band(code)
    empty: dict[str, float | None] = dict.fromkeys(("canal_ap_mm", "canal_area_mm2", "cord_area_mm2"))
    if len(points) * spine.voxel_mm3 < MIN_VOLUME_MM3:
        return empty
    at = int(np.argmin(((spine.line[:, 1:] - points.mean(axis=0)) ** 2).sum(axis=1)))
    reach = round(TANGENT_MM / spine.mm[2])
    low, high = max(at - reach, 0), min(at + reach, len(spine.line) - 1)
    direction = spine.line[high] - spine.line[low]
    length = float(np.linalg.norm(direction))
    if min(at - low, high - at) * spine.mm[2] < 2 * SLAB_MM or length == 0:
        return empty  # The canal ends within the slab.
    offset = spine.canal_mm - spine.line[at]
    direction = direction / length
    slab = share(offset @ direction, float(np.abs(direction) @ spine.mm), -SLAB_MM, SLAB_MM)
    here = spine.canal[slab > 0]
    if not spine.has_canal(float(spine.line[at, 2]), SLAB_MM) or not len(here) or not spine.in_view(here):
        return empty
    chord = slab * share(offset[:, 0], float(spine.mm[0]), -CHORD_MM, CHORD_MM)
    area = spine.voxel_mm3 / (2 * SLAB_MM)
    return {
        "canal_ap_mm": float(chord.sum()) * area / (2 * CHORD_MM),
        "canal_area_mm2": float(slab.sum()) * area,
        "cord_area_mm2": float(slab[spine.is_cord].sum()) * area or None,
    }
