"""Arrange slices as one stack: parallel, evenly spaced and in order, with the position of its voxels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from totalspineseg_server.errors import ImageError
from totalspineseg_server.geometry import Affine, Grid
from totalspineseg_server.io.dicom import dicom_messages
from totalspineseg_server.io.dicom.frames import Frame, frames_of

SLICE_TOLERANCE_MM: Final = 0.1
"""Largest difference between the gaps in one series (headers are rounded to 0.01-0.1 mm)."""
DIRECTION_TOLERANCE: Final = 1e-3
"""Largest difference between direction cosines of parallel slices (0.06 degrees; headers are rounded)."""
SPACING_TOLERANCE_MM: Final = 1e-3
"""Largest difference between pixel spacings in one series: below it, 500 pixels move by less than one."""
SAME_PLACE_MM: Final = 0.01
"""Distance below which slices are at the same position: the precision of headers."""
MISSING_RATIO: Final = 1.5
"""If a measured distance is larger than the stated one by this ratio, slices are missing: 2 if every second one is."""
WHOLE_SLICE: Final = 0.9
"""Share of the thickness below which a stated slice distance is not plausible: the slices would overlap."""
LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
_PLANES: Final = ("sagittal", "coronal", "axial")
"""Name of the plane whose normal is nearest to patient x, y, z."""

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stack:
    """The slices of one series in order.

    Attributes:
        frames: Frames along the normal of the first slice (row direction x column direction), ascending.
        affine: Voxel (column, row, slice) -> RAS mm.
        header: Header of the first object, for patient and study.
    """

    frames: tuple[Frame, ...]
    affine: Affine
    header: Dataset

    @property
    def grid(self) -> Grid:
        """The grid of the pixels from ``read_series``."""
        first = self.frames[0]
        return Grid((first.columns, first.rows, len(self.frames)), self.affine)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One warning if slices seem to be missing although the others are evenly spaced.

        A header with a gap below the thickness is ignored: some scanners write the empty space between slices.
        """
        stated = self.frames[0].gap
        is_plausible = stated >= WHOLE_SLICE * self.frames[0].thickness and stated > 0
        if len(self.frames) < 2 or not is_plausible or self.spacing_mm < MISSING_RATIO * stated:
            return ()
        return (dicom_messages.SLICES_MISSING.format(spacing=self.spacing_mm, stated=stated),)

    @property
    def spacing_mm(self) -> float:
        """The distance between slices; the thickness if there is only one slice."""
        return self.grid.spacing[2]


def stack_of(headers: Sequence[Dataset]) -> Stack:
    """Return the one stack of a series.

    Args:
        headers: Headers from ``read_headers``, in any order. Not modified.

    Raises:
        ImageError: The series has several orientations (a localizer), sizes or images at one position, a missing slice,
            slices without a position, or screenshots; one sentence says which.
    """
    # Count a repeated file once; objects that lost their UIDs are distinguished by their place in the list.
    frames = list(
        {(f.sop_instance or k, f.number): f for k, header in enumerate(headers) for f in frames_of(header)}.values()
    )
    _require_parallel(frames)
    _require_one_size(frames)
    first = np.array(frames[0].orientation)
    normal = np.cross(first[:3], first[3:])
    frames.sort(key=lambda frame: float(np.dot(frame.position, normal)))
    gap = _require_even(frames, normal)
    origin = np.array(frames[0].position)
    _require_straight(frames, origin, normal)
    affine = np.eye(4)
    affine[:3, 0] = first[:3] * frames[0].spacing[1]
    affine[:3, 1] = first[3:] * frames[0].spacing[0]
    affine[:3, 2] = normal * gap
    affine[:3, 3] = origin
    return Stack(tuple(frames), LPS_TO_RAS @ affine, headers[0])


def _require_one_size(frames: list[Frame]) -> None:
    sizes = Counter((frame.columns, frame.rows) for frame in frames)
    spacings = np.array([frame.spacing for frame in frames])
    if len(sizes) > 1:
        raise ImageError(dicom_messages.SEVERAL_SIZES.format(sizes=_listed(sizes)))
    if np.ptp(spacings, axis=0).max() > SPACING_TOLERANCE_MM:
        raise ImageError(dicom_messages.SEVERAL_SPACINGS.format(lowest=spacings.min(), highest=spacings.max()))


def _listed(counts: Counter[tuple[int, int]]) -> str:
    return " and ".join(f"{n} of {columns} x {rows}" for (columns, rows), n in counts.most_common(3))


def _require_parallel(frames: list[Frame]) -> None:
    groups: list[tuple[Vector, int]] = []
    for frame in frames:
        direction = np.array(frame.orientation)
        for index, (known, count) in enumerate(groups):
            if np.abs(direction - known).max() <= DIRECTION_TOLERANCE:
                groups[index] = known, count + 1
                break
        else:
            groups.append((direction, 1))
    if len(groups) == 1:
        return
    planes = Counter[str]()
    for direction, count in groups:
        planes[_PLANES[int(np.abs(np.cross(direction[:3], direction[3:])).argmax())]] += count
    listed = ", ".join(f"{count} {plane}" for plane, count in planes.most_common())
    kind = dicom_messages.MAYBE_LOCALIZER if len(planes) == len(_PLANES) else dicom_messages.MAYBE_TWO_STACKS
    raise ImageError(dicom_messages.NOT_PARALLEL.format(count=len(groups), orientations=listed, cause=kind))


def _require_even(frames: list[Frame], normal: Vector) -> float:
    """Return the mean gap between slices, after checking that each is there once."""
    places = np.array([frame.position for frame in frames]) @ normal
    gaps = np.diff(places)
    if not len(gaps):
        return frames[0].thickness or 1.0
    repeated = int((gaps < SAME_PLACE_MM).sum())
    if repeated:
        distinct = len(frames) - repeated
        raise ImageError(dicom_messages.SEVERAL_AT_ONE_PLACE.format(count=len(frames), places=distinct))
    if gaps.max() - gaps.min() > SLICE_TOLERANCE_MM:
        raise ImageError(dicom_messages.UNEVEN.format(lowest=gaps.min(), highest=gaps.max()))
    return float(gaps.mean())


def _require_straight(frames: list[Frame], origin: Vector, normal: Vector) -> None:
    offsets = np.array([frame.position for frame in frames]) - origin
    along = offsets @ normal
    aside = np.linalg.norm(offsets - np.outer(along, normal), axis=1).max()
    if aside > SLICE_TOLERANCE_MM + DIRECTION_TOLERANCE * np.ptp(along):
        raise ImageError(dicom_messages.SHEARED.format(aside=aside))
