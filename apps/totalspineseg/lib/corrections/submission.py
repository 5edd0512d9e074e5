"""Reading what an annotator's program sent as a label file."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import SimpleITK as sitk

from lib.errors import ImageError, LabelError
from lib.geometry import AnyArray, Grid, LabelArray, Volume
from lib.segments import MAX_SEGMENTS, Segment, Submission
from lib.volume_io import open_itk, read_labels

SEGMENT_KEY: Final = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer)")
"""Header fields in which 3D Slicer keeps the segments of a .seg.nrrd file."""


def read_submission(path: Path, label_info: object) -> Submission:
    """Read a submitted label file and the names of its segments.

    A file that names its own segments (.seg.nrrd) is believed; else the k-th entry of ``label_info``
    names voxel value k, whatever its ``idx`` says: clients write ``idx`` wrongly once a segment was skipped.

    Args:
        path: NIfTI, NRRD or .seg.nrrd file.
        label_info: What came as ``params.label_info``: a list of ``{"name": ..}``, or None.

    Raises:
        ImageError: Not a readable label map.
        LabelError: No names, or names that cannot be read.
    """
    if path.name.lower().endswith(".nrrd"):
        image = _read_nrrd(path)
        own = _own_segments({key: image.GetMetaData(key) for key in image.GetMetaDataKeys()})
        layers, grid = _layers(image)
        if own:
            return Submission(layers, grid, own)
        if len(layers) > 1:
            raise LabelError(
                f"segment names in the file are required for overlapping layers, got {len(layers)} layers without any; "
                "save the segmentation as .seg.nrrd again"
            )
        return Submission(layers, grid, _segments_by_position(label_info))
    volume = read_labels(path)
    return Submission((volume.data,), volume.grid, _segments_by_position(label_info))


def submitted_grid(path: Path) -> Grid:
    """The grid of a submitted label file.

    Raises:
        ImageError: Not a readable label map.
    """
    return _layers(_read_nrrd(path))[1] if path.name.lower().endswith(".nrrd") else read_labels(path).grid


def _segments_by_position(label_info: object) -> tuple[Segment, ...]:
    if not isinstance(label_info, Sequence) or isinstance(label_info, str) or not label_info:
        raise LabelError(
            "The label came without the names of its segments (label_info must be a list of {'name': ..} in the order "
            f"of the voxel values, got {label_info!r}). Submit it from 3D Slicer or another client that sends them."
        )
    return tuple(Segment(_name_of(entry), value) for value, entry in enumerate(label_info, start=1))


def _name_of(entry: object) -> str:
    name: Any = entry.get("name") if isinstance(entry, Mapping) else None
    if not isinstance(name, str):
        raise LabelError(f"A segment has no name (the entry {entry!r} of label_info lacks 'name'). Name it.")
    return name


def _own_segments(meta: Mapping[str, str]) -> tuple[Segment, ...]:
    """Segments named in a NRRD header, by their number there."""
    fields: dict[int, dict[str, str]] = {}
    for key, value in meta.items():
        if match := SEGMENT_KEY.fullmatch(key):
            fields.setdefault(int(match[1]), {})[match[2]] = value
    if len(fields) > MAX_SEGMENTS:
        raise LabelError(f"The label has {len(fields)} segments, more than {MAX_SEGMENTS}. Submit the spine only.")
    segments = []
    for number, field in sorted(fields.items()):
        try:
            segments.append(Segment(field["Name"], int(field["LabelValue"]), int(field.get("Layer", "0"))))
        except (KeyError, ValueError) as error:
            raise LabelError(
                f"Segment {number} of the file lacks a usable Name or LabelValue ({field!r}). Save it again."
            ) from error
    return tuple(segments)


def _read_nrrd(path: Path) -> sitk.Image:
    try:
        return open_itk(path)
    except RuntimeError as error:
        raise ImageError("The NRRD file of the label cannot be read. Save the segmentation again.") from error


def _layers(image: sitk.Image) -> tuple[tuple[LabelArray, ...], Grid]:
    """The layers of a NRRD label map, each (X, Y, Z), and their grid."""
    if image.GetDimension() != 3:
        raise ImageError(f"a 3D label map is required, got {image.GetDimension()} dimensions; save the segmentation")
    data = sitk.GetArrayViewFromImage(image)
    count = image.GetNumberOfComponentsPerPixel()
    arrays = [data[..., k] for k in range(count)] if count > 1 else [data]
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # ITK's LPS to RAS
    layers = tuple(_as_labels(array.transpose()) for array in arrays)
    return layers, Volume(layers[0], affine).grid


def _as_labels(data: AnyArray) -> LabelArray:
    limit = np.iinfo(np.uint8).max
    if not np.isfinite(data).all() or data.min() < 0 or data.max() > limit or (np.rint(data) != data).any():
        raise ImageError(f"a label map needs whole numbers from 0 to {limit}, got others; export it as a label map")
    return np.ascontiguousarray(data, dtype=np.uint8)
