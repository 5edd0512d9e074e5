"""Make MR images as DICOM objects."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from totalspineseg_server.geometry import Affine, AnyArray
from totalspineseg_server.io.dicom.stack import LPS_TO_RAS

MR_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.4"
_IMPLEMENTATION: Final = "2.25.229451600072090404564844894284998027186"
"""Implementation class UID, which identifies the software that wrote a file; a UUID under 2.25."""


def mr_slices(pixels: AnyArray, affine: Affine, instances: list[str], tags: Mapping[str, Any]) -> Iterator[FileDataset]:
    """Yield the slices of a stack as MR Image objects.

    Args:
        pixels: (column, row, slice) whole numbers 0 to 65535. Not modified.
        affine: (column, row, slice) -> RAS mm.
        instances: SOP instance UID of each slice.
        tags: Attributes that all slices share: patient, study, series, acquisition.

    Yields:
        The objects in the order of the stack, numbered from 1.
    """
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / spacing
    values = np.asarray(pixels, dtype=np.uint16)
    for k, instance in enumerate(instances):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MR_IMAGE
        meta.MediaStorageSOPInstanceUID = instance
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.ImplementationClassUID = _IMPLEMENTATION
        image = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        image.is_little_endian, image.is_implicit_VR = True, False
        for keyword, value in tags.items():
            setattr(image, keyword, value)
        image.SOPClassUID, image.SOPInstanceUID = MR_IMAGE, instance
        image.Modality = "MR"
        image.InstanceNumber = k + 1
        image.ImagePositionPatient = _decimals(lps[:3, 3] + k * lps[:3, 2])
        image.ImageOrientationPatient = _decimals([*directions[:, 0], *directions[:, 1]])
        image.PixelSpacing = _decimals([spacing[1], spacing[0]])
        image.SliceThickness = image.SpacingBetweenSlices = _decimals([spacing[2]])[0]
        image.Rows, image.Columns = values.shape[1], values.shape[0]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
        image.PixelData = np.ascontiguousarray(values[:, :, k].T).tobytes()
        yield image


def _decimals(values: Any) -> list[str]:
    """Return numbers with ten decimals, which fit into a decimal string; -0 becomes 0."""
    return [f"{round(float(value), 10) + 0.0:.10g}" for value in values]
