"""Read the label file that an annotator's program sent, and turn its segment names into codes.

This is the only way in which a label of a client is read. Regions below a segment "unreviewed", and structures listed
as unreviewed, count neither in a training nor in the gate. A region hides the structures below it; listed structures
keep their voxels, because the odd discs of step 2 need every disc.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import SimpleITK as sitk

from totalspineseg_server.anatomy import (
    BACKGROUND,
    BY_CODE,
    NAME_OF,
    SACRUM,
    STEP1_FROM_CODE,
    UNREVIEWED,
    UNREVIEWED_NAME,
    VERTEBRAE,
    Kind,
)
from totalspineseg_server.corrections import answers
from totalspineseg_server.errors import ImageError, LabelError
from totalspineseg_server.geometry import AnyArray, Grid, LabelArray, Volume
from totalspineseg_server.io.volumes import open_itk, read_labels
from totalspineseg_server.segments import (
    MAX_SEGMENTS,
    REVIEW_PREFIX,
    VERTEBRAE_NAME,
    Segment,
    Submission,
    code_of_name,
    is_marked,
    is_vertebrae,
    similar_name,
)

SEGMENT_KEY: Final = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer)")
"""Pattern of the header fields in which 3D Slicer stores the segments of a .seg.nrrd file."""
ACCEPTED_MARK: Final = "accepted"
"""Name of an empty segment with which readers confirm the structures that they left as predicted."""
PAINT_ORDER: Final = (Kind.DISC, Kind.VERTEBRA, Kind.CANAL, Kind.CORD, Kind.SACRUM)
"""Order of painting: where segments overlap, the later kind wins, as in results of the pipeline."""
UNREVIEWED_NAMES: Final = "unreviewed"
"""Parameter of a submission: names of structures that nobody checked, as a list or as one text with commas."""


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
    for number, own in sorted(fields.items()):
        try:
            segments.append(Segment(own["Name"], int(own["LabelValue"]), int(own.get("Layer", "0"))))
        except (KeyError, ValueError) as error:
            raise LabelError(answers.unusable_segment(number, own)) from error
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
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # ITK's LPS to RAS
    layers = tuple(_as_labels(array.transpose()) for array in arrays)
    return layers, Volume(layers[0], affine).grid


def _as_labels(data: AnyArray) -> LabelArray:
    limit = np.iinfo(np.uint8).max
    if not np.isfinite(data).all() or data.min() < 0 or data.max() > limit or (np.rint(data) != data).any():
        raise ImageError(answers.not_whole(limit))
    return np.ascontiguousarray(data, dtype=np.uint8)


@dataclass(frozen=True)
class Mapped:
    """A submission in codes.

    Attributes:
        codes: (X, Y, Z) uint8 on the grid of the image.
        step: 1 if the label is a corrected step-1 map (it has "vertebrae" in one piece), otherwise 2.
        overlap_voxels: Voxels that more than one segment claimed.
        present: Codes that have voxels, ascending, without regions that nobody checked.
        unreviewed: Codes whose voxels nobody checked.
        untouched: Codes whose outline and name were left as predicted, and which were not accepted.
        renamed: Codes whose outline was left as predicted, and whose name the reader changed or confirmed.
        unconfirmed: Codes whose name still has the mark of doubt.
        unchanged: See ``Correction``.
        dice: See ``Correction``.
    """

    codes: LabelArray
    step: int
    overlap_voxels: int
    present: tuple[int, ...]
    unreviewed: tuple[int, ...] = ()
    untouched: tuple[int, ...] = ()
    renamed: tuple[int, ...] = ()
    unchanged: bool = False
    dice: Mapping[str, float] = field(default_factory=dict)
    unconfirmed: tuple[int, ...] = ()


def map_names(submission: Submission, image: Grid) -> Mapped:
    """Turn a submission into codes by the names of its segments; segments without voxels are ignored.

    3D Slicer adds an empty segment for each published name that the scene lacks. If a reader renames L3, another, empty
    L3 is sent.

    Args:
        submission: The label file as read. Not modified.
        image: Grid of the image it belongs to.

    Returns:
        Codes on the grid of ``image``, whatever the order of axes in the label.

    Raises:
        LabelError: An unknown name, two segments for one structure, a value without a name, or no voxel at all.
        GridError: The label lies on other voxels.
    """
    submission = submission.on(image)
    filled = _filled(submission)
    _require_no_marks(filled)
    codes = _codes(filled)
    painted, claims = _paint(submission.layers, filled, codes)
    present = tuple(int(code) for code in np.unique(painted) if code not in (BACKGROUND, UNREVIEWED))
    if not present:
        raise LabelError(answers.EMPTY)
    step = 1 if any(is_vertebrae(segment.name) for segment in filled) else 2
    if step == 1:
        _require_step1(present)
    marked = {code for segment, code in zip(filled, codes, strict=True) if is_marked(segment.name)}
    unconfirmed = tuple(sorted(marked.intersection(present)))
    return Mapped(painted, step, int((claims > 1).sum()), present, unconfirmed=unconfirmed)


def _folded(segment: Segment) -> str:
    return segment.name.strip().casefold()


def _codes(segments: tuple[Segment, ...]) -> tuple[int, ...]:
    """Return the code of each segment; "vertebrae" has the sacrum's code, as in step 1."""
    codes: list[int] = []
    named: dict[int | str, str] = {}
    unknown = []
    for segment in segments:
        folded = _folded(segment)
        code = {VERTEBRAE_NAME: SACRUM, UNREVIEWED_NAME: UNREVIEWED}.get(folded) or code_of_name(segment.name)
        if code is None:
            unknown.append(segment.name)
            continue
        structure = VERTEBRAE_NAME if folded == VERTEBRAE_NAME else code
        if structure in named:
            raise LabelError(answers.same_structure(named[structure], segment.name))
        named[structure] = segment.name
        codes.append(code)
    if unknown:
        raise LabelError(answers.unknown_names([_with_suggestion(name) for name in unknown]))
    return tuple(codes)


def _with_suggestion(name: str) -> str:
    """Quote an unknown name, with the published name that it may stand for."""
    suggestion = similar_name(name)
    return repr(name) if suggestion is None else answers.or_perhaps(name, suggestion)


def _filled(submission: Submission) -> tuple[Segment, ...]:
    """Return the segments that have voxels, after checking that every voxel belongs to one segment of its layer."""
    by_place = {(segment.layer, segment.value): segment for segment in submission.segments}
    if len(by_place) < len(submission.segments):
        raise LabelError(answers.ONE_VALUE_TWICE)
    if any(not 0 <= segment.layer < len(submission.layers) for segment in submission.segments):
        raise LabelError(answers.no_such_layer(len(submission.layers)))
    filled = []
    for layer, data in enumerate(submission.layers):
        for value in (int(v) for v in np.unique(data) if v != BACKGROUND):
            if (layer, value) not in by_place:
                raise LabelError(answers.unnamed_value(value))
            filled.append(by_place[layer, value])
    return tuple(filled)


def _require_no_marks(filled: tuple[Segment, ...]) -> None:
    marks = [repr(segment.name) for segment in filled if _folded(segment).startswith(REVIEW_PREFIX)]
    if marks:
        raise LabelError(answers.review_marks(marks))
    if any(_folded(segment) == ACCEPTED_MARK for segment in filled):
        raise LabelError(answers.painted_acceptance(ACCEPTED_MARK))


def is_marked_accepted(submission: Submission) -> bool:
    """Return whether a reader added the segment ``ACCEPTED_MARK``; 3D Slicer also sends the names of empty segments.

    Args:
        submission: The label file as read. Not modified.
    """
    return any(_folded(segment) == ACCEPTED_MARK for segment in submission.segments)


def _require_step1(present: tuple[int, ...]) -> None:
    """Check that a map with "vertebrae" in one piece has no single vertebra except C1."""
    single = [
        repr(BY_CODE[c].name) for c in present if c in VERTEBRAE and STEP1_FROM_CODE[c] == STEP1_FROM_CODE[SACRUM]
    ]
    if single:
        raise LabelError(answers.both_steps(VERTEBRAE_NAME, single))


def _paint(
    layers: tuple[LabelArray, ...], segments: tuple[Segment, ...], codes: tuple[int, ...]
) -> tuple[LabelArray, LabelArray]:
    """Return the codes, and how many segments claim each voxel."""
    painted = np.zeros(layers[0].shape, dtype=np.uint8)
    claims = np.zeros(painted.shape, dtype=np.uint8)
    tables = np.zeros((len(layers), np.iinfo(np.uint8).max + 1), dtype=np.uint8)
    for segment, code in zip(segments, codes, strict=True):
        tables[segment.layer, segment.value] = code
    mapped = [table[data] for table, data in zip(tables, layers, strict=True)]
    if len(mapped) == 1:
        return mapped[0], claims
    for layer in mapped:
        claims += layer != BACKGROUND
    # Inferior ones come before superior ones, so that the superior one of two overlapping vertebrae or discs wins.
    for code in sorted(set(codes), key=_painted_when):
        for layer in mapped:
            painted[layer == code] = code
    return painted, claims


def _painted_when(code: int) -> tuple[int, int]:
    """Return a key that sorts codes in the order of painting; unchecked regions come last and cover the rest."""
    return (len(PAINT_ORDER), 0) if code == UNREVIEWED else (PAINT_ORDER.index(BY_CODE[code].kind), -code)


def with_unreviewed(mapped: Mapped, names: object) -> Mapped:
    """Return a submission with the structures that its reader did not check.

    Args:
        mapped: The submission in codes. Not modified.
        names: The parameter ``unreviewed``; None or empty if everything was checked.

    Raises:
        LabelError: Not a list of names, an unknown one, or one that has no voxel in the label.
    """
    region = answers.or_mark_region(UNREVIEWED_NAMES)
    codes = named_codes(mapped, names, UNREVIEWED_NAMES, or_else=region)
    if codes and codes == set(mapped.present):
        listed = [NAME_OF[code] for code in sorted(codes)]
        raise LabelError(answers.all_unreviewed(listed))
    return replace(mapped, unreviewed=tuple(sorted(codes)))


def named_codes(mapped: Mapped, names: object, parameter: str, *, or_else: str = "") -> frozenset[int]:
    """Return the codes of structures that a parameter of a submission lists by name.

    Args:
        mapped: The submission in codes. Not modified.
        names: A list of names, or one text with commas; None lists nothing.
        parameter: Name of the parameter, for messages.
        or_else: Another remedy for the author, for the message about a name that is not in the label.

    Raises:
        LabelError: Not a list of names, an unknown one, or one that has no voxel in the label.
    """
    words = names.split(",") if isinstance(names, str) else names or []
    if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise LabelError(answers.no_list_of_names(parameter, names))
    codes = set()
    for word in filter(None, (word.strip() for word in words)):
        code = code_of_name(word)
        if code is None or code not in mapped.present:
            raise LabelError(answers.not_in_label(parameter, word, or_else))
        codes.add(code)
    return frozenset(codes)
