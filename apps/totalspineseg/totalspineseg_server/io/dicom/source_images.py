"""Let a segmentation refer to its source images.

highdicom requires complete single-frame images, or one multi-frame image. Many series are neither: required tags are
missing, or frames are spread over several multi-frame objects. Therefore it gets one complete substitute header for
each slice, and the references to the substitutes are then replaced by references to the originals.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from totalspineseg_server.errors import ImageError
from totalspineseg_server.io.dicom import dicom_messages
from totalspineseg_server.io.dicom.frames import Frame
from totalspineseg_server.io.dicom.headers import uid_from
from totalspineseg_server.io.dicom.stack import Stack

_MR_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.4"
_TEXT: Final = ("PatientID", "AccessionNumber", "StudyID")
_NAMES: Final = ("PatientName", "ReferringPhysicianName")
"""Attributes that are set at the end: highdicom logs a warning with names of one component, and names must not be
logged."""
_DATE: Final = re.compile(r"\d{8}")
_TIME: Final = re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?")
_SEXES: Final = ("M", "F", "O")


def reference_images(stack: Stack, *, size: tuple[int, ...]) -> list[Dataset]:
    """Return one complete single-frame header for each slice, in the order of the stack.

    Args:
        stack: Stack of the source series. Not modified.
        size: Rows and columns that the headers state.

    Returns:
        Headers with the patient and study of the series; missing values are empty, and a missing frame of reference is
        made from its series UID.

    Raises:
        ImageError: The study, series or an instance has no UID, so that nothing can refer to it.
    """
    header = stack.header
    study, series = str(header.get("StudyInstanceUID") or ""), str(header.get("SeriesInstanceUID") or "")
    if not study or not series or not all(frame.sop_instance and frame.sop_class for frame in stack.frames):
        raise ImageError(dicom_messages.NO_UID)
    images = [_stand_in(stack, frame, f"{frame.sop_instance}/{frame.number}") for frame in stack.frames]
    for image in images:
        image.Rows, image.Columns = size
    return images


def _stand_in(stack: Stack, frame: Frame, identity: str) -> Dataset:
    header = stack.header
    image = Dataset()
    for keyword in _TEXT:
        setattr(image, keyword, str(header.get(keyword) or "") or None)
    for keyword in _NAMES:
        setattr(image, keyword, None)
    for keyword, pattern in {"PatientBirthDate": _DATE, "StudyDate": _DATE, "StudyTime": _TIME}.items():
        value = str(header.get(keyword) or "").strip()
        setattr(image, keyword, value if pattern.fullmatch(value) else None)
    sex = str(header.get("PatientSex") or "").strip()
    image.PatientSex = sex if sex in _SEXES else None
    image.StudyInstanceUID = header.StudyInstanceUID
    image.SeriesInstanceUID = header.SeriesInstanceUID
    image.FrameOfReferenceUID = _frame_of_reference(header)
    image.PositionReferenceIndicator = None
    image.SOPClassUID = _MR_IMAGE
    image.SOPInstanceUID = frame.sop_instance if frame.number is None else uid_from("frame", identity)
    image.Modality = "MR"
    image.PixelSpacing = [_ds(value) for value in frame.spacing]
    image.SliceThickness = _ds(frame.thickness or stack.spacing_mm)
    image.SpacingBetweenSlices = _ds(stack.spacing_mm)
    image.ImagePositionPatient = [_ds(value) for value in frame.position]
    image.ImageOrientationPatient = [_ds(value) for value in stack.frames[0].orientation]
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image


def _frame_of_reference(header: Dataset) -> str:
    """Return the frame of reference of a series; if it names none, one is made from its series UID."""
    return str(header.get("FrameOfReferenceUID") or "") or uid_from("frame", str(header.get("SeriesInstanceUID") or ""))


def _ds(value: float) -> str:
    """Return a number in the 16 characters of a DICOM decimal string."""
    for digits in range(16, 3, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    return f"{value:.4g}"


def point_to_originals(seg: Any, images: Sequence[Dataset], stack: Stack) -> None:
    """Replace references to the substitutes by references to the objects, frames and people of the series itself.

    Args:
        seg: The new segmentation. Modified.
        images: Headers from ``reference_images``.
        stack: Stack of the source series.
    """
    frames = {str(image.SOPInstanceUID): frame for image, frame in zip(images, stack.frames, strict=True)}
    for groups in seg.PerFrameFunctionalGroupsSequence:
        for derivation in groups.get("DerivationImageSequence") or []:
            for source in derivation.SourceImageSequence:
                frame = frames[str(source.ReferencedSOPInstanceUID)]
                source.ReferencedSOPClassUID = frame.sop_class
                source.ReferencedSOPInstanceUID = frame.sop_instance
                if frame.number is not None:
                    source.ReferencedFrameNumber = frame.number
    for keyword in _NAMES:
        setattr(seg, keyword, str(stack.header.get(keyword) or ""))
    objects = dict.fromkeys((frame.sop_class, frame.sop_instance) for frame in stack.frames)
    seg.SourceImageSequence = [_reference(*item) for item in objects]
    series = Dataset()
    series.SeriesInstanceUID = stack.header.SeriesInstanceUID
    series.ReferencedInstanceSequence = [_reference(*item) for item in objects]
    seg.ReferencedSeriesSequence = [series]


def _reference(sop_class: str, sop_instance: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class
    item.ReferencedSOPInstanceUID = sop_instance
    return item
