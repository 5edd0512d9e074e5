"""The voxels of a DICOM series."""

from functools import cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from lib.dicom.frames import Scaling
from lib.dicom.headers import read_headers
from lib.dicom.stack import Stack, stack_of
from lib.errors import ImageError
from lib.geometry import AnyArray, Volume


def read_series(path: Path) -> Volume:
    """Read the image of a DICOM series.

    Args:
        path: Folder of one series, or one file (an enhanced multi-frame image, or a single slice).

    Returns:
        (column, row, slice) on ``stack_of(read_headers(path)).grid``, values as stored or, where the header
        scales them, scaled.

    Raises:
        ImageError: Not one stack of slices, or pixels that cannot be read.
    """
    stack = stack_of(read_headers(path))
    return Volume(_pixels(stack), stack.affine)


def _pixels(stack: Stack) -> AnyArray:
    read = cache(_read_object)  # one object may hold many frames
    scalings: dict[Path | None, set[Scaling]] = {}
    for frame in stack.frames:
        scalings.setdefault(frame.file, set()).add(frame.scaling)
    planes = []
    for frame in stack.frames:
        if frame.file is None:
            raise ImageError("DICOM files are required, got a header without pixels; send the files")
        plane = read(frame.file)[(frame.number or 1) - 1]
        if len(scalings[frame.file]) > 1 and frame.scaling:
            # The decoder scales the frames of an object where all have one scaling, and leaves them alone otherwise.
            slope, intercept = frame.scaling
            plane = plane * np.float32(slope) + np.float32(intercept)
        planes.append(plane)
    data: AnyArray = np.stack(planes).transpose()
    return data


def _read_object(path: Path) -> AnyArray:
    """(frame, row, column)."""
    try:
        image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise ImageError(
            f"a readable DICOM image is required, got {path.name!r}, whose pixels cannot be read; export it again"
        ) from error
    data: AnyArray = sitk.GetArrayFromImage(image)
    return data if data.ndim == 3 else data[np.newaxis]
