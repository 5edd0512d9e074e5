"""Write label maps as DICOM SEG: each structure becomes a segment with its name, code and color."""

import re
from collections.abc import Collection, Mapping
from datetime import datetime
from io import BytesIO
from typing import Any, Final

import highdicom as hd
import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from totalspineseg_server.anatomy import BACKGROUND, BY_CODE, NAME_OF
from totalspineseg_server.errors import EmptySegmentationError
from totalspineseg_server.geometry import LabelArray, Volume, on_grid
from totalspineseg_server.io.dicom import dicom_messages
from totalspineseg_server.io.dicom.headers import Sources, read_headers, uid_from
from totalspineseg_server.io.dicom.source_images import point_to_originals, reference_images
from totalspineseg_server.io.dicom.stack import stack_of
from totalspineseg_server.io.dicom.terms import ANATOMICAL_STRUCTURE, SCHEME, Term, dicom_cielab_of, term_of
from totalspineseg_server.segments import with_mark

MANUFACTURER: Final = "TotalSpineSeg for MONAI Label"
ALGORITHM: Final = "TotalSpineSeg"
DESCRIPTION: Final = "Spine segmentation"
DOUBTFUL: Final = f"{DESCRIPTION}, levels DOUBTFUL"
"""Description of a result with uncertain levels, for lists of the PACS; nothing else of the report stays with the
object.
"""
_FAMILY: Final = Code("123109", "DCM", "Artificial Intelligence")
"""Algorithm family, DICOM CID 7162."""
SERIES_NUMBER: Final = 100
"""Number of the series of a segmentation; that of its report is the next one."""
BYTE: Final = 8
MAX_LO: Final = 64
"""Largest number of characters in a DICOM long string."""


def write_result(
    labels: Volume,
    sources: Sources,
    versions: Mapping[str, str],
    *,
    doubtful: bool,
    marked: Collection[int],
    names: Mapping[int, str] = NAME_OF,
) -> Dataset:
    """Return a model's own result as ``write_seg`` does, described by its weights and its doubts.

    Args:
        labels: See ``write_seg``.
        sources: See ``write_seg``.
        versions: Step -> version of the weights that made it.
        doubtful: Whether its levels are doubtful.
        marked: See ``write_seg``.
        names: See ``write_seg``.

    Raises:
        EmptySegmentationError: See ``write_seg``, also for the other errors.
    """
    return write_seg(
        labels,
        sources,
        model=", ".join(f"{step} {version}" for step, version in sorted(versions.items())),
        version=", ".join(sorted(set(versions.values()))),
        names=names,
        description=DOUBTFUL if doubtful else DESCRIPTION,
        marked=marked,
    )


def write_seg(
    labels: Volume,
    sources: Sources,
    *,
    model: str,
    version: str,
    names: Mapping[int, str] = NAME_OF,
    description: str = DESCRIPTION,
    when: datetime | None = None,
    corrected_by: str | None = None,
    marked: Collection[int] = (),
) -> Dataset:
    """Return a label map as a DICOM SEG object in the study of its series.

    Args:
        labels: Codes of the label table, uint8, on the grid of the series; its axes may be in any order. Not modified.
        sources: The series: folder, files, or headers.
        model: Name of the model that made the labels.
        version: Its version; those of several weights are separated by ", ".
        names: Code -> segment label; step-1 maps have "vertebrae" in the sacrum's place.
        description: Series description.
        when: Date and time of the content; None is now.
        corrected_by: Reader who changed the model's labels ("" if unknown): the segments are then marked as
            semi-automatic, and the object names its creator. None for a model's own result.
        marked: Codes of doubtful levels, whose labels get the mark of doubt.

    Returns:
        The object, in a new series, binary, one segment for each structure that is present, numbered from 1 in the
        order of the label table. Data about patient and study that the series lacks stay empty.

    Raises:
        EmptySegmentationError: No voxel is marked; a SEG object needs a segment.
        GridError: The labels are not on the grid of the series.
        ImageError: The series is not one stack of slices.
        ValueError: A value is not a code of ``names``.
    """
    stack = stack_of(read_headers(sources))
    codes = _present(labels.data, names)
    planes = on_grid(labels, stack.grid).data.transpose(2, 1, 0)
    found = _segments_of_planes(planes, codes)
    images = reference_images(stack, size=found.shape[1:])
    seg = hd.seg.Segmentation(
        source_images=images,
        pixel_array=found,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_descriptions(
            codes, names, str(images[0].StudyInstanceUID), _algorithm(model, version), corrected_by is not None, marked
        ),
        series_instance_uid=generate_uid(prefix=None),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(prefix=None),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=model[:MAX_LO],
        software_versions=version[:MAX_LO],
        device_serial_number="1",
        content_label="SPINE",
        content_description=description[:MAX_LO],
        series_description=description[:MAX_LO],
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    # One value holds 64 characters, too few for two trained versions.
    seg.SoftwareVersions = [part[:MAX_LO] for part in version.split(", ")]
    seg.SpecificCharacterSet = "ISO_IR 192"
    _date(seg, when or datetime.now())  # DICOM dates are local to where the object is made
    seg.ContentCreatorName = _person(corrected_by or "")
    _fill(seg, planes, codes, [str(image.SOPInstanceUID) for image in images])
    point_to_originals(seg, images, stack)
    return seg


def seg_bytes(dataset: Dataset) -> bytes:
    """Return a DICOM object as the content of a file."""
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, write_like_original=False)
    return buffer.getvalue()


def _present(labels: LabelArray, names: Mapping[int, str]) -> tuple[int, ...]:
    codes = tuple(int(code) for code in np.unique(labels) if code != BACKGROUND)
    if not codes:
        raise EmptySegmentationError(dicom_messages.EMPTY_MAP)
    if unknown := [code for code in codes if code not in names or code not in BY_CODE]:
        raise ValueError(f"expected codes of the label table, got {unknown!r}")
    return codes


def _segments_of_planes(planes: LabelArray, codes: tuple[int, ...]) -> LabelArray:
    """Return the segments in each plane: (plane, 1, segment), the segment's number or 0.

    highdicom describes the frames of these small pictures just as it would those of the planes, without holding
    every frame in memory at once; the pixels are filled in afterwards.
    """
    found = np.zeros((len(planes), 1, len(codes)), dtype=np.uint8)
    for number, plane in enumerate(planes):
        counts = np.bincount(plane.ravel(), minlength=max(codes) + 1)
        found[number, 0] = np.where(counts[list(codes)] > 0, np.arange(1, len(codes) + 1), 0)
    return found


def _fill(seg: Any, planes: LabelArray, codes: tuple[int, ...], instances: list[str]) -> None:
    """Fill a segmentation with the pixels of the frames it describes, one bit each, frame after frame."""
    place = {instance: number for number, instance in enumerate(instances)}
    frames = [
        (
            codes[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1],
            place[str(groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)],
        )
        for groups in seg.PerFrameFunctionalGroupsSequence
    ]
    content = bytearray()
    for first in range(0, len(frames), BYTE):  # eight frames always fill whole bytes
        bits = np.concatenate([(planes[number] == code).ravel() for code, number in frames[first : first + BYTE]])
        content += np.packbits(bits, bitorder="little").tobytes()
    seg.Rows, seg.Columns = planes.shape[1:]
    seg.PixelData = bytes(content) + b"\0" * (len(content) % 2)


def _algorithm(model: str, version: str) -> hd.AlgorithmIdentificationSequence:
    return hd.AlgorithmIdentificationSequence(
        name=f"{ALGORITHM} {model}"[:MAX_LO], family=_FAMILY, version=version[:MAX_LO], source=MANUFACTURER
    )


def _descriptions(
    codes: tuple[int, ...],
    names: Mapping[int, str],
    study: str,
    algorithm: hd.AlgorithmIdentificationSequence,
    corrected: bool,
    marked: Collection[int],
) -> list[hd.seg.SegmentDescription]:
    kinds = hd.seg.SegmentAlgorithmTypeValues
    present = [names[code] for code in codes]
    descriptions = []
    for number, code in enumerate(codes, start=1):
        name = names[code]
        item = hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=with_mark(name) if code in marked else name,
            segmented_property_category=_coded(ANATOMICAL_STRUCTURE),
            segmented_property_type=_coded(term_of(name, present)),
            algorithm_type=kinds.SEMIAUTOMATIC if corrected else kinds.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_id=name,
            # Use the same UID for the same structure in every segmentation of a study.
            tracking_uid=uid_from("segment", study, name),
        )
        item.RecommendedDisplayCIELabValue = dicom_cielab_of(BY_CODE[code].color)
        descriptions.append(item)
    return descriptions


def _coded(term: Term) -> Code:
    return Code(term.code, SCHEME, term.meaning)


def _person(name: str) -> str:
    """Return a user's name as a DICOM person name: one family name, without the characters that separate its parts."""
    return re.sub(r"[\^=\\\x00-\x1f]+", " ", name).strip()[:MAX_LO]


def _date(seg: Any, when: datetime) -> None:
    date, time = when.strftime("%Y%m%d"), when.strftime("%H%M%S")
    seg.ContentDate = seg.SeriesDate = seg.InstanceCreationDate = date
    seg.ContentTime = seg.SeriesTime = seg.InstanceCreationTime = time
