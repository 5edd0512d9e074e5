"""Open a DICOM SEG object: its references, its segments, and its frames one by one."""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from totalspineseg_server.errors import ImageError, LabelError
from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.io.dicom import dicom_messages
from totalspineseg_server.io.dicom.headers import SEG_CLASSES, require_bounded, sop_class

SegSource: TypeAlias = Path | bytes | Dataset
"""A SEG file, its content, or the object itself."""
_UNCOMPRESSED: Final = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99")
"""Transfer syntaxes whose one-bit pixels are a plain row of bits: implicit, explicit and deflated little endian."""
_NO_DICOM: Final = (
    InvalidDicomError,
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    AttributeError,
    zlib.error,
)
"""Errors that reading a damaged file, or one that is not DICOM, may raise."""
_LISTED_VALUES: Final = 3
"""Largest number of values in a message."""


@dataclass(frozen=True)
class SegReference:
    """Description and references of a SEG object.

    Attributes:
        instance: Its own UID.
        series: UID of its series.
        study: UID of its study.
        referenced_series: Image series on which it was drawn; empty if it names none.
        manufacturer: Maker of the program that wrote it; "" if not stated.
        labels: Segment labels in the order of the file.
    """

    instance: str
    series: str
    study: str
    referenced_series: tuple[str, ...]
    manufacturer: str
    labels: tuple[str, ...]


def is_seg(source: SegSource) -> bool:
    """Return whether this is a DICOM SEG object; False for anything that is not DICOM."""
    try:
        return sop_class(_open(source, pixels=False)) in SEG_CLASSES
    except LabelError:
        return False


def seg_content(source: SegSource) -> str:
    """Return a hash of a SEG object's content that does not depend on how the file encodes its elements.

    Raises:
        LabelError: Not a DICOM SEG object.
    """
    dataset = _open(source, pixels=True)
    digest = hashlib.sha256(bytes(dataset.get("PixelData") or b""))
    rest = Dataset()
    rest.update({element.tag: element for element in dataset if element.keyword != "PixelData"})
    digest.update(str(rest).encode())
    return digest.hexdigest()


def seg_reference(source: SegSource) -> SegReference:
    """Return the description and references of a SEG object, without reading its pixels.

    Raises:
        LabelError: Not a DICOM SEG object.
    """
    seg = open_seg(source, pixels=False)
    series = list(seg.get("ReferencedSeriesSequence") or [])
    segments = list(seg.get("SegmentSequence") or [])
    return SegReference(
        instance=_text(seg, "SOPInstanceUID"),
        series=_text(seg, "SeriesInstanceUID"),
        study=_text(seg, "StudyInstanceUID"),
        referenced_series=tuple(_text(item, "SeriesInstanceUID") for item in series),
        manufacturer=_text(seg, "Manufacturer"),
        labels=tuple(_text(item, "SegmentLabel") for item in segments),
    )


def open_seg(source: SegSource, *, pixels: bool = True) -> Dataset:
    """Open a SEG object.

    Raises:
        LabelError: Not a DICOM SEG object.
    """
    seg = _open(source, pixels=pixels)
    if sop_class(seg) not in SEG_CLASSES:
        raise LabelError(dicom_messages.OTHER_MODALITY.format(modality=_text(seg, "Modality")))
    return seg


def frames_of_seg(seg: Dataset) -> Iterator[tuple[int, LabelArray]]:
    """Yield the frames of a SEG object.

    Args:
        seg: Object opened with pixels. Not modified.

    Yields:
        Index from 0, and (row, column) uint8: 0 or 1, or segment numbers in a label map SEG.

    Raises:
        LabelError: The pixels cannot be read, or are probabilities instead of masks.
    """
    count, rows, columns = int(seg.get("NumberOfFrames") or 0), int(seg.get("Rows") or 0), int(seg.get("Columns") or 0)
    if not count or not rows or not columns or "PixelData" not in seg:
        raise LabelError(dicom_messages.NO_FRAMES)
    syntax = str(getattr(seg.file_meta, "TransferSyntaxUID", "")) if hasattr(seg, "file_meta") else ""
    if int(seg.BitsAllocated) == 1 and (not syntax or syntax in _UNCOMPRESSED):
        yield from _bits(seg, count, rows, columns)
        return
    try:
        pixels = np.asarray(seg.pixel_array).reshape(count, rows, columns)
    except (RuntimeError, NotImplementedError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise LabelError(dicom_messages.OTHER_ENCODING) from error
    yield from enumerate(_masks(seg, pixels))


def _bits(seg: Dataset, count: int, rows: int, columns: int) -> Iterator[tuple[int, LabelArray]]:
    """Yield frames of one bit per pixel, stored one after the other without padding."""
    content = np.frombuffer(seg.PixelData, dtype=np.uint8)
    size = rows * columns
    if content.size * 8 < count * size:
        raise LabelError(dicom_messages.TRUNCATED.format(present=content.size * 8 // size, count=count))
    for index in range(count):
        first = index * size
        bits = np.unpackbits(content[first // 8 : (first + size + 7) // 8], bitorder="little")
        yield index, bits[first % 8 : first % 8 + size].reshape(rows, columns)


def _masks(seg: Dataset, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return masks from pixels of at least one byte."""
    if is_label_map(seg):
        return pixels
    full = int(seg.get("MaximumFractionalValue") or 1)
    values = [int(value) for value in np.unique(pixels) if value]
    # In a mask of one byte per pixel, "full" marks the structure; in compressed masks of dcmjs, 1 does.
    if values and values not in ([1], [full]):
        raise LabelError(dicom_messages.FRACTIONS.format(values=values[:_LISTED_VALUES], full=full))
    masks: LabelArray = (pixels != 0).astype(np.uint8)
    return masks


def is_label_map(seg: Dataset) -> bool:
    """Return whether the pixels are segment numbers rather than masks."""
    return _text(seg, "SegmentationType") == "LABELMAP" or sop_class(seg) == SEG_CLASSES[1]


def _open(source: SegSource, *, pixels: bool) -> Dataset:
    if isinstance(source, Dataset):
        return source
    try:
        require_bounded(source)
        file = BytesIO(source) if isinstance(source, bytes) else source
        return pydicom.dcmread(file, stop_before_pixels=not pixels)
    except ImageError as error:
        raise LabelError(str(error)) from error
    except _NO_DICOM as error:
        raise LabelError(dicom_messages.NO_SEGMENTATION) from error


def _text(dataset: Dataset, keyword: str) -> str:
    value: Any = dataset.get(keyword)
    return "" if value is None else str(value).strip()
