"""Cut a labeled spine across its canal, once through each level."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from totalspineseg_server.anatomy import BY_CODE, DISCS, SACRUM, VERTEBRAE
from totalspineseg_server.geometry import AnyArray, LabelArray, Volume, to_ras
from totalspineseg_server.numbering.evidence_weights import ORDER
from totalspineseg_server.preview.planes import Course

WIDTH_MM: Final = 76.0
"""Side of a cut: a lumbar body with its canal and the root of the spinous process."""
AHEAD_MM: Final = 9.0
"""Distance from the canal forward to the middle of a cut."""
LEVELS: Final = (*(code for code in VERTEBRAE if code != SACRUM), *DISCS)
"""Levels that are cut. The sacrum is left out, because its canal cannot be judged in one cut."""


@dataclass(frozen=True)
class Cut:
    """One cut through a level, across the canal; anterior is up, and the patient's right on the left.

    Attributes:
        code: The level.
        gray: (rows, columns) float32, the image.
        codes: (rows, columns) uint8, the labels.
    """

    code: int
    gray: npt.NDArray[np.float32]
    codes: LabelArray

    @property
    def name(self) -> str:
        """Name of the level."""
        return BY_CODE[self.code].name


def axial_cuts(
    volume: Volume, labels: LabelArray, course: Course, *, size_px: int, codes: Collection[int] = LEVELS
) -> list[Cut]:
    """Return a cut through each level, from top to bottom.

    Args:
        volume: Image, any orientation and spacing. Not modified.
        labels: Codes on the same grid. Not modified.
        course: From ``course_of``; the cuts are at right angles to its canal.
        size_px: Rows and columns of a cut.
        codes: Levels to cut, where they are present.
    """
    ras, named = to_ras(volume), to_ras(Volume(labels, volume.affine)).data
    spacing = np.array(ras.spacing)
    canal = np.stack([course.x, course.canal_y, np.arange(named.shape[2], dtype=np.float64)], axis=1) * spacing
    along = _directions(canal)
    centers = _centers(named, course, [code for code in codes if code in ORDER])
    return [
        _cut(ras.data, named, code, *_frame(centers[code] * spacing, canal, along), spacing, size_px)
        for code in sorted(centers, key=ORDER.__getitem__)
    ]


def _directions(canal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the unit vector along the canal at each height; straight up in a single slice."""
    if len(canal) < 2:
        return np.array([[0.0, 0.0, 1.0]])
    step = np.gradient(canal, axis=0)
    found: npt.NDArray[np.float64] = step / np.linalg.norm(step, axis=1, keepdims=True)
    return found


def _centers(named: LabelArray, course: Course, codes: Collection[int]) -> dict[int, npt.NDArray[np.float64]]:
    """Return code -> (x, y, z) voxel in the middle of its part anterior of the canal, or of all of it if no part is."""
    boxes = ndimage.find_objects(named, max_label=max(codes, default=0))
    found = {}
    for code in codes:
        box = boxes[code - 1] if code <= len(boxes) else None
        if box is None:
            continue
        places = np.argwhere(named[box] == code) + [part.start for part in box]
        body = places[places[:, 1] > course.canal_y[places[:, 2]]]
        found[code] = (body if len(body) else places).mean(axis=0)
    return found


def _frame(
    center: npt.NDArray[np.float64], canal: npt.NDArray[np.float64], along: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the middle of the plane through a level, and its directions to the right and anterior; mm."""
    # Where the plane at right angles to the canal comes nearest to the level.
    k = int(np.abs(((center - canal) * along).sum(axis=1)).argmin())
    normal = along[k]
    right = np.array([1.0, 0.0, 0.0]) - normal[0] * normal
    right /= np.linalg.norm(right)
    anterior = np.cross(normal, right)
    return canal[k] + AHEAD_MM * anterior, right, anterior


def _cut(
    data: AnyArray,
    named: LabelArray,
    code: int,
    middle: npt.NDArray[np.float64],
    right: npt.NDArray[np.float64],
    anterior: npt.NDArray[np.float64],
    spacing: npt.NDArray[np.float64],
    size_px: int,
) -> Cut:
    # The patient's right on the left, anterior up.
    offsets = ((size_px - 1) / 2 - np.arange(size_px)) * (WIDTH_MM / size_px)
    points = middle + offsets[:, np.newaxis, np.newaxis] * anterior + offsets[:, np.newaxis] * right
    voxels = np.moveaxis(points / spacing, -1, 0)
    gray = ndimage.map_coordinates(data, voxels, np.float32, order=1, mode="constant", cval=float(data.min()))
    codes = ndimage.map_coordinates(named, voxels, np.uint8, order=0, mode="constant", cval=0)
    return Cut(code, gray, codes)
