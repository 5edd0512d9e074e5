"""Read a DICOM SEG as named layers on the grid of an image; segments are known by their labels, never by number."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from totalspineseg_server.errors import GridError, ImageError, LabelError
from totalspineseg_server.geometry import SAME_VOXEL, Affine, Grid, LabelArray
from totalspineseg_server.io.dicom import dicom_messages
from totalspineseg_server.io.dicom.frames import Frame, frames_of
from totalspineseg_server.io.dicom.headers import Sources, read_headers
from totalspineseg_server.io.dicom.seg_object import SegSource, frames_of_seg, is_label_map, open_seg
from totalspineseg_server.io.dicom.stack import LPS_TO_RAS
from totalspineseg_server.segments import MAX_SEGMENTS, Segment, Submission

Indices = npt.NDArray[np.intp]


def read_seg(
    seg: SegSource,
    image: Grid,
    *,
    sources: Sources | None = None,
) -> Submission:
    """Read a DICOM SEG as a submission on the grid of its image.

    Segments are known by their labels only; ``corrections.submission`` decides what the labels mean.

    Args:
        seg: SEG file, its content or the object; from this project, OHIF (dcmjs), dcmqi or 3D Slicer. Not modified.
        image: Grid of the image that was annotated.
        sources: Series of the image. It is needed if the SEG places its frames by reference only, and to check that
            both have the same frame of reference.

    Returns:
        Layers on ``image``'s grid, segments in the order of the file; overlapping segments lie in several layers.
        Segments without voxels are listed as well.

    Raises:
        LabelError: The file is not a SEG, its pixels are not masks, or its segments cannot be distinguished.
        GridError: The frame of reference differs, or the frames are not planes of ``image``'s voxels.
        ImageError: ``sources`` is not a series.
    """
    opened = open_seg(seg)
    headers = read_headers(sources) if sources is not None else ()
    # A series without a frame of reference cannot be checked, because every writer makes one up for it.
    expected = str(headers[0].get("FrameOfReferenceUID") or "") if headers else ""
    _require_frame_of_reference(opened, expected)
    segments = _segments(opened)
    found: dict[int, list[Indices]] = {number: [] for number in segments}
    numbers = _numbers_of_frames(opened)
    frames = _frames(opened, headers)
    to_voxels = np.linalg.inv(image.affine) @ LPS_TO_RAS
    for index, pixels in frames_of_seg(opened):
        if not pixels.any():
            continue
        for number, mask in _masks(opened, pixels, numbers[index]):
            if number not in found:
                raise LabelError(dicom_messages.NO_SEGMENT_LABEL.format(number=number))
            found[number].append(_voxels(mask, frames[index], to_voxels, image))
    return _submission(segments, found, image)


def _require_frame_of_reference(seg: Dataset, expected: str) -> None:
    own = str(seg.get("FrameOfReferenceUID") or "")
    if expected and own and own != expected:
        raise GridError(dicom_messages.OTHER_POSITION.format(frame_of_reference=own))


def _segments(seg: Dataset) -> dict[int, str]:
    """Return number -> label, in the order of the file, without the background of a label map."""
    segments: dict[int, str] = {}
    for item in seg.get("SegmentSequence") or []:
        number = int(item.get("SegmentNumber") or 0)
        if number == 0 and is_label_map(seg):
            continue
        if number in segments:
            raise LabelError(dicom_messages.TWO_SEGMENTS.format(number=number))
        segments[number] = str(item.get("SegmentLabel") or "").strip()
    if not segments:
        raise LabelError(dicom_messages.NO_SEGMENTS)
    if len(segments) > MAX_SEGMENTS:
        raise LabelError(dicom_messages.TOO_MANY_SEGMENTS.format(count=len(segments), limit=MAX_SEGMENTS))
    return segments


def _numbers_of_frames(seg: Dataset) -> list[int]:
    """Return the segment number of each frame; 0 if none is stated."""
    shared = list(seg.get("SharedFunctionalGroupsSequence") or [])[:1]
    numbers = []
    for own in seg.get("PerFrameFunctionalGroupsSequence") or []:
        items = [item for group in (own, *shared) for item in group.get("SegmentIdentificationSequence") or []]
        numbers.append(int(items[0].get("ReferencedSegmentNumber") or 0) if items else 0)
    count = int(seg.get("NumberOfFrames") or 0)
    if len(numbers) != count:
        raise LabelError(dicom_messages.FRAMES_NOT_DESCRIBED.format(described=len(numbers), count=count))
    return numbers


def _frames(seg: Dataset, headers: Sequence[Dataset]) -> Sequence[Frame]:
    """Return the frames of a SEG, at the positions it states or else at those of the images it refers to."""
    try:
        return frames_of(seg)
    except ImageError as error:
        known = {(f.sop_instance, f.number): f for header in headers for f in frames_of(header)}
        places = [known.get(_source(own)) for own in seg.PerFrameFunctionalGroupsSequence]
        if missing := sum(place is None for place in places):
            raise GridError(
                dicom_messages.SEG_FRAMES_WITHOUT_PLACE.format(missing=missing, count=len(places))
            ) from error
        return [place for place in places if place is not None]


def _source(groups: Dataset) -> tuple[str, int | None]:
    """Return the image object, and the frame of it, on which a frame of a SEG was drawn."""
    for derivation in groups.get("DerivationImageSequence") or []:
        for item in derivation.get("SourceImageSequence") or []:
            number: Any = item.get("ReferencedFrameNumber")
            return str(item.get("ReferencedSOPInstanceUID") or ""), int(number) if number else None
    return "", None


def _masks(seg: Dataset, pixels: LabelArray, number: int) -> list[tuple[int, npt.NDArray[np.bool_]]]:
    if not is_label_map(seg):
        return [(number, pixels != 0)]
    return [(int(value), pixels == value) for value in np.unique(pixels) if value]


def _voxels(mask: npt.NDArray[np.bool_], frame: Frame, to_voxels: Affine, image: Grid) -> Indices:
    """Return flat indices into the image for the pixels that are set."""
    placed = np.eye(4)
    placed[:3, 0] = np.array(frame.orientation[:3]) * frame.spacing[1]
    placed[:3, 1] = np.array(frame.orientation[3:]) * frame.spacing[0]
    placed[:3, 2] = 0
    placed[:3, 3] = frame.position
    mapping = (to_voxels @ placed)[:3, [0, 1, 3]]
    whole = np.rint(mapping)
    rows, columns = mask.shape
    corners = np.array([(c, r, 1) for c in (0, columns - 1) for r in (0, rows - 1)], dtype=np.float64).T
    offset_vox = mapping @ corners - whole @ corners
    if np.abs(offset_vox).max() > SAME_VOXEL or not _is_plane(whole):
        offset_mm = np.linalg.norm(image.affine[:3, :3] @ offset_vox, axis=0).max()
        raise GridError(
            dicom_messages.OFF_THE_VOXELS.format(
                columns=columns, rows=rows, across=frame.spacing[1], down=frame.spacing[0], offset=offset_mm
            )
        )
    row, column = np.nonzero(mask)
    index = whole.astype(np.intp) @ np.array([column, row, np.ones_like(row)])
    if (index < 0).any() or (index >= np.array(image.shape)[:, np.newaxis]).any():
        raise GridError(dicom_messages.OUTSIDE.format(shape=image.shape))
    flat: Indices = np.ravel_multi_index(tuple(index), image.shape)
    return flat


def _is_plane(whole: Affine) -> bool:
    """Return whether steps of one pixel to the right and down are steps of one voxel along two different axes."""
    steps = np.abs(whole[:, :2])
    return bool((steps.sum(axis=0) == 1).all() and (steps.sum(axis=1) <= 1).all())


def _submission(segments: dict[int, str], found: dict[int, list[Indices]], image: Grid) -> Submission:
    layers = [np.zeros(int(np.prod(image.shape)), dtype=np.uint8)]
    listed = []
    for value, (number, label) in enumerate(segments.items(), start=1):
        voxels = np.concatenate(found[number]) if found[number] else np.empty(0, dtype=np.intp)
        layer = next((k for k, data in enumerate(layers) if not data[voxels].any()), len(layers))
        if layer == len(layers):
            layers.append(np.zeros_like(layers[0]))
        layers[layer][voxels] = value
        listed.append(Segment(label, value, layer))
    return Submission(tuple(data.reshape(image.shape) for data in layers), image, tuple(listed))
