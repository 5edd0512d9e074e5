"""List the sizes of the parts of each vertebra, in mm, by region and relative position within it.

Sources:
    Panjabi et al., Cervical human vertebrae, Spine 16(8), 1991, 861-869; Thoracic human vertebrae, Spine
    16(8), 1991, 888-901; Human lumbar vertebrae, Spine 17(3), 1992, 299-306: endplate width and depth, posterior
    body height, canal width and depth, transverse process width (rounded; gaps between levels interpolated).
    Thoracic pedicles: Kaur et al., J Clin Orthop Trauma 7(2), 2016, 101-108; lumbar ones: Panjabi 1992; cervical: ours.
    Sacrum (height, width, S1's depth): within the ranges of morphometric studies of dry sacra and MRI, rounded.
    Cord: Frostell et al., A review of the segmental diameter of the healthy human spinal cord, Front Neurol 2016.
    Conus at L1: Saifuddin et al., Spine 23(13), 1998, 1452-1456. Sagittal angles: Roussouly and Nnadi,
    Eur Spine J 19, 2010, 1824-1836. Spinous and disc heights: ours, from published ranges, rounded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

REGIONS: Final = ("cervical", "thoracic", "lumbar")


@dataclass(frozen=True)
class LevelSize:
    """Measures of one vertebra and the disc below it; every length in mm.

    Attributes:
        height: Posterior height of the body.
        width: Width of the body at the endplate, right to left.
        depth: Depth of the body at the endplate, front to back.
        canal_width: Width of the bony canal, right to left.
        canal_depth: Depth of the bony canal, front to back.
        transverse_width: Distance between the tips of the transverse processes.
        spinous_length: Distance from the canal's back wall to the tip of the spinous process.
        spinous_slope: Tangent of the angle of the spinous process below horizontal.
        spinous_height: Height of the root of the spinous process.
        disc_height: Height of the disc below at its middle.
        pedicle_width: Width of a pedicle, right to left.
    """

    height: float
    width: float
    depth: float
    canal_width: float
    canal_depth: float
    transverse_width: float
    spinous_length: float
    spinous_slope: float
    spinous_height: float
    disc_height: float
    pedicle_width: float


_ROWS: Final = MappingProxyType(
    {
        "cervical": (  # C1 (the ring is drawn separately), C2 (without dens), C3 .. C7
            (9.0, 17.0, 10.0, 27.0, 24.0, 78.0, 6.0, 0.1, 8.0, 0.0, 5.5),
            (18.0, 17.5, 15.6, 24.5, 19.5, 55.0, 17.0, 0.35, 13.0, 4.8, 5.5),
            (11.6, 16.0, 15.0, 22.9, 16.2, 52.0, 15.0, 0.35, 8.0, 5.0, 5.5),
            (11.4, 17.2, 15.3, 24.7, 17.0, 50.0, 15.0, 0.35, 8.0, 5.1, 5.5),
            (11.4, 17.8, 15.4, 24.9, 17.0, 49.0, 18.0, 0.35, 8.0, 5.2, 5.5),
            (11.2, 19.0, 16.4, 25.8, 17.0, 52.0, 25.0, 0.40, 8.5, 5.3, 5.5),
            (12.8, 22.0, 18.0, 24.5, 16.0, 66.0, 34.0, 0.42, 9.5, 4.8, 5.5),
        ),
        "thoracic": (  # T1 .. T12
            (14.1, 25.0, 18.5, 21.9, 16.4, 75.0, 34.0, 0.50, 10.0, 4.2, 9.3),
            (15.6, 25.0, 19.6, 19.5, 15.5, 70.0, 32.0, 0.70, 10.0, 3.8, 7.0),
            (15.7, 24.8, 22.0, 18.4, 15.9, 63.0, 32.0, 0.90, 10.0, 3.7, 5.5),
            (16.2, 24.7, 23.3, 17.5, 16.2, 61.0, 31.0, 1.10, 10.0, 3.8, 4.5),
            (16.6, 25.0, 24.3, 17.3, 16.2, 61.0, 31.0, 1.25, 10.0, 4.0, 4.6),
            (17.4, 26.2, 26.0, 17.5, 16.4, 61.0, 31.0, 1.30, 10.5, 4.3, 4.9),
            (18.2, 27.8, 27.4, 17.3, 16.0, 60.0, 31.0, 1.30, 11.0, 4.7, 5.2),
            (18.7, 29.5, 27.9, 17.5, 15.9, 60.0, 31.0, 1.20, 11.5, 5.0, 5.6),
            (19.3, 30.6, 29.3, 17.6, 15.7, 59.0, 29.0, 1.00, 12.0, 5.3, 6.1),
            (20.2, 31.9, 30.5, 18.2, 15.6, 58.0, 27.0, 0.75, 13.0, 5.8, 6.7),
            (21.3, 34.9, 31.9, 19.4, 16.1, 52.0, 25.0, 0.50, 14.5, 6.5, 7.8),
            (22.7, 39.0, 32.8, 22.2, 18.1, 47.0, 25.0, 0.35, 17.0, 7.2, 8.3),
        ),
        "lumbar": (  # L1 .. L5
            (23.8, 41.2, 34.1, 23.7, 19.0, 71.0, 29.0, 0.22, 20.0, 8.4, 8.6),
            (24.3, 42.6, 34.6, 23.8, 18.2, 76.0, 31.0, 0.20, 22.0, 9.6, 8.3),
            (24.0, 44.1, 35.2, 24.3, 17.5, 85.0, 31.0, 0.18, 22.0, 10.6, 10.2),
            (24.0, 46.6, 35.5, 25.4, 18.6, 80.0, 29.0, 0.18, 20.0, 11.2, 14.1),
            (22.9, 47.3, 34.7, 27.1, 19.7, 90.0, 22.0, 0.25, 16.0, 10.4, 18.6),
        ),
    }
)


def level_sizes(region: str, count: int) -> tuple[LevelSize, ...]:
    """Return the sizes of a region with this many vertebrae, superior to inferior.

    Args:
        region: "cervical", "thoracic" or "lumbar".
        count: Number of vertebrae; unusual numbers are interpolated by relative position.

    Returns:
        One size per vertebra.
    """
    table = np.asarray(_ROWS[region], dtype=np.float64)
    usual = np.linspace(0.0, 1.0, len(table))
    wanted = np.linspace(0.0, 1.0, count)
    columns = [np.interp(wanted, usual, column) for column in table.T]
    return tuple(LevelSize(*map(float, row)) for row in zip(*columns, strict=True))


SACRAL_HEIGHTS: Final = (29.0, 25.0, 21.0, 18.0, 15.0)
"""Heights of S1 .. S5 along the curved sacrum, mm."""
SACRAL_DEPTHS: Final = (32.0, 22.0, 16.0, 12.0, 9.0)
"""Front-to-back depth of the sacral bodies, mm."""
SACRAL_WIDTHS: Final = (104.0, 88.0, 70.0, 58.0, 42.0)
"""Whole width with the alae, mm."""

CORD_POSITIONS: Final = (0.0, 0.18, 0.32, 0.45, 0.75, 0.90, 1.0)
"""Relative position along the cord, 0 = C1, 1 = tip of the conus."""
CORD_WIDTHS: Final[Sequence[float]] = (12.0, 13.0, 12.0, 8.6, 8.4, 9.6, 2.0)
"""Width right to left, mm: cervical enlargement, thoracic, lumbar enlargement, conus."""
CORD_DEPTHS: Final[Sequence[float]] = (8.3, 7.6, 7.2, 6.6, 6.6, 8.0, 2.0)
"""Depth front to back, mm."""

SACRAL_SLOPE_DEG: Final = (37.0, 7.0)
"""Mean and standard deviation of the tilt of the first sacral endplate."""
LUMBAR_LORDOSIS_DEG: Final = (44.0, 11.0)
THORACIC_KYPHOSIS_DEG: Final = (40.0, 9.0)
CERVICAL_LORDOSIS_DEG: Final = (21.0, 12.0)
