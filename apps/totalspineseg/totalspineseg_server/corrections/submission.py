"""Read the label file that a reader's program sent."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import SimpleITK as sitk

from totalspineseg_server.corrections import answers
from totalspineseg_server.errors import ImageError, LabelError
from totalspineseg_server.geometry import AnyArray, Grid, LabelArray, Volume
from totalspineseg_server.segments import MAX_SEGMENTS, Segment, Submission
from totalspineseg_server.volume_io import open_itk, read_labels

SEGMENT_KEY: Final = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer)")
"""Pattern of the header fields in which 3D Slicer stores the segments of a .seg.nrrd file."""


def read_submission(path: Path, label_info: object) -> Submission:
    """Read a submitted label file and the names of its segments.

    The names in a file that has them (.seg.nrrd) are used. Otherwise the k-th entry of ``label_info`` names voxel value
    k, whatever its ``idx`` says, because clients write a wrong ``idx`` after a skipped segment.

    Args:
        path: NIfTI, NRRD or .seg.nrrd file.
        label_info: The parameter ``label_info``: a list of ``{"name": ..}``, or None.

    Raises:
        ImageError: The file is not a readable label map.
        LabelError: Names are missing or cannot be read.
    """
    if path.name.lower().endswith(".nrrd"):
        image = _read_nrrd(path)
        own = _own_segments({key: image.GetMetaData(key) for key in image.GetMetaDataKeys()})
        layers, grid = _layers(image)
        if own:
            return Submission(layers, grid, own)
        if len(layers) > 1:
            raise LabelError(answers.unnamed_layers(len(layers)))
        return Submission(layers, grid, _segments_by_position(label_info))
    volume = read_labels(path)
    return Submission((volume.data,), volume.grid, _segments_by_position(label_info))


def submitted_grid(path: Path) -> Grid:
    """Return the grid of a submitted label file.

    Raises:
        ImageError: The file is not a readable label map.
    """
    return _layers(_read_nrrd(path))[1] if path.name.lower().endswith(".nrrd") else read_labels(path).grid


def _segments_by_position(label_info: object) -> tuple[Segment, ...]:
    if not isinstance(label_info, Sequence) or isinstance(label_info, str) or not label_info:
        raise LabelError(answers.no_names(label_info))
    return tuple(Segment(_name_of(entry), value) for value, entry in enumerate(label_info, start=1))


def _name_of(entry: object) -> str:
    name: Any = entry.get("name") if isinstance(entry, Mapping) else None
    if not isinstance(name, str):
        raise LabelError(answers.nameless(entry))
    return name


def _own_segments(meta: Mapping[str, str]) -> tuple[Segment, ...]:
    """Return the segments named in a NRRD header, ordered by their number there."""
    fields: dict[int, dict[str, str]] = {}
    for key, value in meta.items():
        if match := SEGMENT_KEY.fullmatch(key):
            fields.setdefault(int(match[1]), {})[match[2]] = value
    if len(fields) > MAX_SEGMENTS:
        raise LabelError(answers.too_many_segments(len(fields), MAX_SEGMENTS))
    segments = []
    for number, field in sorted(fields.items()):
        try:
            segments.append(Segment(field["Name"], int(field["LabelValue"]), int(field.get("Layer", "0"))))
        except (KeyError, ValueError) as error:
            raise LabelError(answers.unusable_segment(number, field)) from error
    return tuple(segments)


def _read_nrrd(path: Path) -> sitk.Image:
    try:
        return open_itk(path)
    except RuntimeError as error:
        raise ImageError(answers.UNREADABLE_NRRD) from error


def _layers(image: sitk.Image) -> tuple[tuple[LabelArray, ...], Grid]:
    """Return the layers of a NRRD label map, each (X, Y, Z), and their grid."""
    if image.GetDimension() != 3:
        raise ImageError(answers.not_3d(image.GetDimension()))
    data = sitk.GetArrayViewFromImage(image)
    count = image.GetNumberOfComponentsPerPixel()
    arrays = [data[..., k] for k in range(count)] if count > 1 else [data]
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # ITK uses LPS, this project RAS.
    layers = tuple(_as_labels(array.transpose()) for array in arrays)
    return layers, Volume(layers[0], affine).grid


def _as_labels(data: AnyArray) -> LabelArray:
    limit = np.iinfo(np.uint8).max
    if not np.isfinite(data).all() or data.min() < 0 or data.max() > limit or (np.rint(data) != data).any():
        raise ImageError(answers.not_whole(limit))
    return np.ascontiguousarray(data, dtype=np.uint8)
