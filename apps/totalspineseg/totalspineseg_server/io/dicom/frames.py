"""Read the slices of a series one at a time; single-frame and enhanced multi-frame objects look alike here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from pydicom import Dataset

from totalspineseg_server.errors import ImageError
from totalspineseg_server.io.dicom import dicom_messages
from totalspineseg_server.io.dicom.headers import is_capture, sop_class, sop_instance

_GROUPS: Final = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
)
"""Functional groups of a multi-frame object that give a frame's position and the meaning of its values."""


_AXES_TOLERANCE: Final = 0.01
"""Largest rounding error of the products of direction cosines."""

Scaling: TypeAlias = tuple[float, float] | None
"""Slope and intercept from stored to real values."""


@dataclass(frozen=True)
class Frame:
    """One slice.

    Attributes:
        sop_class: Kind of the object it belongs to.
        sop_instance: UID of that object.
        number: Frame number from 1 in a multi-frame object, None in a single-frame one.
        position: LPS mm of the center of the first pixel.
        orientation: LPS direction along a row (three numbers) and along a column (three).
        spacing: mm between rows and between columns.
        rows: Pixels in a column.
        columns: Pixels in a row.
        thickness: mm; 0 if the header does not state it.
        gap: mm from the middle of one slice to that of the next; 0 if the header does not state it.
        scaling: Slope and intercept of this frame of a multi-frame object; None if it has none of its own.
        file: File with the pixels; None if only the header is available.
    """

    sop_class: str
    sop_instance: str
    number: int | None
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    rows: int
    columns: int
    thickness: float
    gap: float
    scaling: Scaling
    file: Path | None


def frames_of(header: Dataset) -> tuple[Frame, ...]:
    """Return the slices of one image object.

    Args:
        header: Single-frame image or enhanced multi-frame image; no pixels needed. Not modified.

    Raises:
        ImageError: The image has colors, or a slice has no position in the patient (screenshots have none).
    """
    if is_capture(header):
        raise ImageError(dicom_messages.SCREENSHOTS)
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise ImageError(dicom_messages.COLORS.format(values=header.SamplesPerPixel))
    count = int(header.get("NumberOfFrames") or 1)
    if groups := header.get("PerFrameFunctionalGroupsSequence"):
        if len(groups) != count:
            raise ImageError(dicom_messages.FRAMES_MISCOUNTED.format(count=count, described=len(groups)))
        return tuple(_enhanced(header))
    if count > 1:
        raise ImageError(dicom_messages.FRAMES_WITHOUT_PLACE.format(count=count))
    return (_frame(header, [header], None),)


def _enhanced(header: Dataset) -> Iterator[Frame]:
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
    for number, own in enumerate(header.PerFrameFunctionalGroupsSequence, start=1):
        groups = [own, *shared]
        places = [item for group in groups for keyword in _GROUPS for item in list(group.get(keyword) or [])[:1]]
        yield _frame(header, [*places, header], number)


def _frame(header: Dataset, places: list[Dataset], number: int | None) -> Frame:
    position = _numbers(places, "ImagePositionPatient", 3)
    orientation = _numbers(places, "ImageOrientationPatient", 6)
    spacing = _numbers(places, "PixelSpacing", 2)
    if position is None or orientation is None:
        raise ImageError(dicom_messages.SLICES_WITHOUT_PLACE)
    axes = np.array(orientation).reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > _AXES_TOLERANCE:
        raise ImageError(
            dicom_messages.NOT_PERPENDICULAR.format(orientation=", ".join(f"{value:g}" for value in orientation))
        )
    if spacing is None or min(spacing) <= 0:
        raise ImageError(dicom_messages.NO_SPACING)
    thickness, gap = (_numbers(places, keyword, 1) for keyword in ("SliceThickness", "SpacingBetweenSlices"))
    slope, intercept = (_numbers(places, keyword, 1) for keyword in ("RescaleSlope", "RescaleIntercept"))
    name: Any = getattr(header, "filename", None)
    return Frame(
        sop_class=sop_class(header),
        sop_instance=sop_instance(header),
        number=number,
        position=position,
        orientation=orientation,
        spacing=(spacing[0], spacing[1]),
        rows=int(header.Rows),
        columns=int(header.Columns),
        thickness=thickness[0] if thickness else 0.0,
        gap=gap[0] if gap else 0.0,
        scaling=(slope[0], intercept[0]) if number is not None and slope and intercept else None,
        file=Path(name) if isinstance(name, str | Path) else None,
    )


def _numbers(places: list[Dataset], keyword: str, count: int) -> tuple[float, ...] | None:
    """Return the value from the first of several places that has this many finite numbers."""
    for place in places:
        value: Any = place.get(keyword)
        try:
            numbers = tuple(float(v) for v in np.atleast_1d(value)) if value is not None else ()
        except (TypeError, ValueError):
            continue
        if len(numbers) == count and np.isfinite(numbers).all():
            return numbers
    return None
