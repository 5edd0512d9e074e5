"""Read the voxels of a DICOM series."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from totalspineseg_server.errors import ImageError
from totalspineseg_server.files import storage_errors
from totalspineseg_server.geometry import AnyArray
from totalspineseg_server.image import Image
from totalspineseg_server.io.dicom import dicom_messages
from totalspineseg_server.io.dicom.headers import MODALITY, is_deflated, pixel_bytes, read_headers
from totalspineseg_server.io.dicom.stack import Stack, stack_of
from totalspineseg_server.io.file_content import itk_name

SCALING_KEYWORDS: Final = (
    "PixelValueTransformationSequence",
    "RealWorldValueMappingSequence",
    "RescaleSlope",
    "RescaleIntercept",
)
DISTANCE_KEYWORDS: Final = ("SliceThickness", "SpacingBetweenSlices")


def read_series(path: Path) -> Image:
    """Read the image of a DICOM series.

    Args:
        path: Folder of one series, or one file (an enhanced multi-frame image, or a single slice).

    Returns:
        (column, row, slice) on ``stack_of(read_headers(path)).grid``. Values are as stored, or scaled if the header
        says so. A warning is added if slices seem to be missing, and if it is no MR series.

    Raises:
        ImageError: The series is not one stack of slices, or its pixels cannot be read.
        StorageError: The disk is too full to unpack a file.
    """
    headers = read_headers(path)
    stack = stack_of(headers)
    return Image(_pixels(stack), stack.affine, _warnings(stack, headers))


def series_warnings(path: Path) -> tuple[str, ...]:
    """Return the warnings of ``read_series`` without reading pixels; none if it would raise an error.

    Args:
        path: As for ``read_series``.
    """
    try:
        headers = read_headers(path)
        return _warnings(stack_of(headers), headers)
    except (ImageError, OSError):
        return ()


def _warnings(stack: Stack, headers: Iterable[Dataset]) -> tuple[str, ...]:
    others = sorted({str(header.get("Modality") or MODALITY) for header in headers} - {MODALITY})
    not_mr = [dicom_messages.NOT_MR.format(modality=" and ".join(others))] if others else []
    return (*stack.warnings, *not_mr)


def _pixels(stack: Stack) -> AnyArray:
    read = cache(_read_object)  # One object may have many frames.
    scaled = {frame.file for frame in stack.frames if frame.scaling}
    planes = []
    for frame in stack.frames:
        if frame.file is None:
            raise ImageError(dicom_messages.NO_PIXELS)
        plane = read(frame.file, frame.file in scaled)[(frame.number or 1) - 1]
        if frame.scaling:
            slope, intercept = frame.scaling
            plane = plane * np.float32(slope) + np.float32(intercept)
        planes.append(plane)
    data: AnyArray = np.stack(planes).transpose()
    return data


def _read_object(path: Path, unscaled: bool) -> AnyArray:
    """Read the pixels of one object, (frame, row, column); with ``unscaled``, values are as stored, whatever the header
    says.
    """
    try:
        with _for_decoder(path, unscaled) as file:
            image = sitk.ReadImage(itk_name(file), imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise ImageError(dicom_messages.UNREADABLE_PIXELS.format(name=path.name)) from error
    data: AnyArray = sitk.GetArrayFromImage(image)
    return data if data.ndim == 3 else data[np.newaxis]


@contextmanager
def _for_decoder(path: Path, unscaled: bool) -> Iterator[Path]:
    """Yield a file that the decoder reads correctly.

    The decoder does not support deflated files, and scales all frames of an object like the first one. It also refuses
    slice distances of 0, which some programs write and which are not needed here.
    """
    deflated = is_deflated(path)
    header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    flat = any(header.get(keyword) == 0 for keyword in DISTANCE_KEYWORDS)
    if not deflated and not unscaled and not flat:
        yield path
        return
    dataset = pydicom.dcmread(path, force=True)
    if len(dataset.get("PixelData") or b"") < pixel_bytes(dataset):
        raise ImageError(dicom_messages.DAMAGED.format(name=path.name))
    if deflated:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    _remove(dataset, (*(SCALING_KEYWORDS if unscaled else ()), *(DISTANCE_KEYWORDS if flat else ())))
    with (
        storage_errors(Path(tempfile.gettempdir())),
        tempfile.TemporaryDirectory(prefix="totalspineseg-dicom-") as folder,
    ):
        copy = Path(folder) / "copy.dcm"
        dataset.save_as(copy)
        yield copy


def _remove(dataset: Dataset, keywords: tuple[str, ...]) -> None:
    groups = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    for item in (dataset, *(item for keyword in groups for item in dataset.get(keyword) or [])):
        for keyword in keywords:
            if keyword in item:
                delattr(item, keyword)
