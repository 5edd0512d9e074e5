"""Measure every structure of a label map: its sizes, volume and place, and the image within it."""

from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from nibabel.affines import apply_affine

from totalspineseg_server.anatomy import BACKGROUND, CANAL, CORD, DISCS, SACRUM, VERTEBRAE
from totalspineseg_server.geometry import Grid, LabelArray, Volume
from totalspineseg_server.measurements.measured_rows import COLUMN_ROW, Row, empty_row, measure, rounded
from totalspineseg_server.trust import Certainty

BESIDE: Final = (SACRUM, CANAL, CORD)
"""Structures other than levels, in the order of their rows."""
PERCENTILES: Final = {"p5": 5, "median": 50, "p95": 95}
Intensities = tuple[Volume, LabelArray]
"""An image, and the label map on its voxels."""


def structure_rows(
    labels: Volume,
    grid: Grid,
    *,
    image: Intensities | None = None,
    doubtful: Collection[int] = (),
    certainty: Certainty | None = None,
    sizes: bool = True,
) -> list[Row]:
    """Measure every structure of a finished label map.

    Args:
        labels: uint8 codes at 1 mm, nearest RAS. Not modified.
        grid: The grid whose voxels "centroid_i_vox" and so on count: that of the image as scanned.
        image: The image as scanned, for the intensities, and the codes on its voxels. Not modified.
        doubtful: Codes whose level is doubtful.
        certainty: How sure the other names are; None if nothing is known.
        sizes: Whether heights, areas and angles can be measured; not in an image whose header skews it.

    Returns:
        One row for each vertebra and disc, superior to inferior, then sacrum, canal and cord, then the column if it
        was measured; see ``COLUMNS``. Empty for an empty map.
    """
    extents = _extents(labels, grid)
    within = {} if image is None else _within(*image)
    measured = measure(labels.data, labels.spacing, doubtful=doubtful, certainty=certainty) if sizes else []
    rows = {row["level"]: row for row in measured}
    column = rows.pop(COLUMN_ROW, None)
    levels = [code for code in (*VERTEBRAE, *DISCS) if code in extents]
    result = []
    for code in [*sorted(levels, key=lambda code: -extents[code]["centroid_z_mm"]), *BESIDE]:
        if code in extents:
            names = None if code in BESIDE else "doubtful" if code in doubtful else certainty
            row = empty_row(code, names)
            result.append(rounded({**row, **rows.get(row["level"], {}), **extents[code], **within.get(code, {})}))
    return result if column is None else [*result, column]


def _extents(labels: Volume, grid: Grid) -> dict[int, dict[str, float]]:
    """Return code -> volume and centroid."""
    # Counts of each code in each slice of each axis, which is several times faster than a list of all voxels.
    counted = [np.stack([_counts(plane) for plane in np.moveaxis(labels.data, axis, 0)]) for axis in range(3)]
    counts = counted[0].sum(axis=0)
    counts[BACKGROUND] = 0
    sums = np.stack([np.arange(len(each)) @ each for each in counted], axis=1)
    to_scan = np.linalg.inv(grid.affine)
    voxel_ml = float(np.prod(labels.spacing)) / 1000
    found = {}
    for code in np.flatnonzero(counts).tolist():
        mm = apply_affine(labels.affine, sums[code] / counts[code])
        place = dict(zip((f"centroid_{axis}_mm" for axis in "xyz"), mm.tolist(), strict=True))
        vox = zip((f"centroid_{axis}_vox" for axis in "ijk"), apply_affine(to_scan, mm).tolist(), strict=True)
        found[code] = {"volume_ml": float(counts[code]) * voxel_ml, **place, **dict(vox)}
    return found


def _counts(plane: LabelArray) -> npt.NDArray[np.intp]:
    return np.bincount(plane.ravel(), minlength=256)


def _within(image: Volume, codes: LabelArray) -> Mapping[int, dict[str, Any]]:
    """Return code -> statistics of the image's values within the structure."""
    marked = codes > 0
    inside: npt.NDArray[np.float64] = image.data[marked].astype(np.float64)
    labels = codes[marked]
    order = np.argsort(labels, kind="stable")
    inside, labels = inside[order], labels[order]
    borders = np.searchsorted(labels, np.arange(257))
    found = {}
    for code in np.unique(labels).tolist():
        values = inside[borders[code] : borders[code + 1]]
        marks = np.percentile(values, list(PERCENTILES.values()))
        statistics = {"mean": values.mean(), "sd": values.std(), **dict(zip(PERCENTILES, marks, strict=True))}
        found[code] = {f"intensity_{name}": float(value) for name, value in statistics.items()}
    return found
