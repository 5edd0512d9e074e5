"""Describe a body or disc within the sagittal band, in its own frame: its heights and the slope of its endplates."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from totalspineseg_server.anatomy import C1, DISCS, VERTEBRAE, column
from totalspineseg_server.measurements.measured_spine import BAND_MM, Points, Spine, share
from totalspineseg_server.numbering.states import LUMBAR_PRIOR, THORACIC_PRIOR

DEPTH_PERCENTILES: Final = (1.0, 99.0)
"""Percentiles that count as the anterior and posterior edge of a body or disc: single voxels beyond them are
osteophytes or noise."""
MIN_VOLUME_MM3: Final = 300.0
"""A body or disc with less volume in the band is a remnant (a C3 body has about 2000)."""
MIN_DEPTH_MM: Final = 8.0


@dataclass(frozen=True)
class Frame:
    """Position of a level in the sagittal plane: center (y, z) mm and unit directions."""

    center: Points
    anterior: Points
    superior: Points


@dataclass(frozen=True)
class Profile:
    """A structure within the band, in its own frame, mm.

    Attributes:
        along: Anterior coordinate of every voxel, from the posterior edge.
        up: Superior coordinate of every voxel.
        depth: Distance between the two edges.
        footprint: Extent of a voxel along the anterior axis; a voxel at the edge of a zone counts in part.
        voxel_mm2: Volume of a voxel divided by the width of the band.
        frame: The structure's frame.
    """

    along: Points
    up: Points
    depth: float
    footprint: float
    voxel_mm2: float
    frame: Frame

    def height(self, first: float, last: float) -> float:
        """Return the mean thickness between two shares of the depth, counted from the anterior edge."""
        low, high = (1 - last) * self.depth, (1 - first) * self.depth
        return float(share(self.along, self.footprint, low, high).sum() * self.voxel_mm2 / (high - low))

    def endplate_angle(self, *, superior: bool) -> float:
        """Return the slope of a surface against the image's anterior axis, radians; positive if it rises anteriorly."""
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


def profiles_of(spine: Spine, codes: Collection[int]) -> dict[int, Profile]:
    """Return profiles of the bodies and discs that are completely in view and have a neighbor to take the direction
    from.

    Args:
        spine: The label map.
        codes: Vertebrae and discs that are present.

    Returns:
        Code -> profile. A body has a profile only if both of its discs are there, which shows that no endplate is cut
        off.
    """
    bands = {code: band for code in codes if len((band := spine.band(code))[0]) * spine.voxel_mm3 >= MIN_VOLUME_MM3}
    order = sorted(bands, key=lambda code: -float(bands[code][0][:, 1].mean()))
    centers = np.array([bands[code][0].mean(axis=0) for code in order]).reshape(-1, 2)
    profiles = {}
    for k, code in enumerate(order):
        points, whole = bands[code]
        # C1 has no body: its arch lies in front of C2 and gives no direction.
        first = k if k == 0 or order[k - 1] == C1 else k - 1
        above, below = centers[first], centers[min(k + 1, len(order) - 1)]
        if not whole or len(order) < 2 or (code in VERTEBRAE and not _between_discs(order, k)):
            continue
        superior = (above - below) / np.linalg.norm(above - below)
        profile = _profile(points, Frame(centers[k], np.array([superior[1], -superior[0]]), superior), spine)
        if profile.depth >= MIN_DEPTH_MM:
            profiles[code] = profile
    return profiles


def _with_discs() -> frozenset[tuple[int | None, int, int | None]]:
    columns = [column(thoracic, lumbar) for thoracic in THORACIC_PRIOR for lumbar in LUMBAR_PRIOR]
    return frozenset(triple for c in columns for triple in zip(c.discs, c.vertebrae[1:], c.discs[1:], strict=False))


WITH_DISCS: Final = _with_discs()
"""Disc above, vertebra, disc below, in every variant of the column."""


def _between_discs(order: Sequence[int], k: int) -> bool:
    """Return whether a body lies between its own two discs: no endplate is cut off, and it is not two fused bodies.

    C2 has only a disc below it.
    """
    above = order[k - 1] if k and order[k - 1] in DISCS else None
    below = order[k + 1] if k + 1 < len(order) else None
    return (above, order[k], below) in WITH_DISCS


def _profile(points: Points, frame: Frame, spine: Spine) -> Profile:
    along = (points - frame.center) @ frame.anterior
    low, high = np.percentile(along, DEPTH_PERCENTILES)
    up = (points - frame.center) @ frame.superior
    footprint = float(np.abs(frame.anterior) @ spine.mm[1:])
    low, high = low - footprint / 2, high + footprint / 2
    return Profile(along - low, up, float(high - low), footprint, spine.voxel_mm3 / (2 * BAND_MM), frame)
