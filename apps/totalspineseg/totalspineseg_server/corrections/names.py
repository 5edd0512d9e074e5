"""Turn segment names into codes, the only way in which a label of a client is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from totalspineseg_server.anatomy import (
    BACKGROUND,
    BY_CODE,
    SACRUM,
    STEP1_FROM_CODE,
    UNREVIEWED,
    UNREVIEWED_NAME,
    VERTEBRAE,
    Kind,
)
from totalspineseg_server.corrections import answers
from totalspineseg_server.corrections.wire import REVIEW_PREFIX, VERTEBRAE_NAME, is_vertebrae
from totalspineseg_server.errors import LabelError
from totalspineseg_server.geometry import Grid, LabelArray
from totalspineseg_server.segments import Segment, Submission
from totalspineseg_server.spellings import code_of_name, is_marked, meant_by

ACCEPTED_MARK: Final = "accepted"
"""Name of an empty segment by which readers say that they checked what they left as predicted."""
PAINT_ORDER: Final = (Kind.DISC, Kind.VERTEBRA, Kind.CANAL, Kind.CORD, Kind.SACRUM)
"""Order of painting: where segments overlap, the later kind wins, as in results of the pipeline."""


@dataclass(frozen=True)
class Mapped:
    """A submission in codes.

    Attributes:
        codes: (X, Y, Z) uint8 on the grid of the image.
        step: 1 when the label is a corrected step-1 map (it has "vertebrae" in one piece), else 2.
        overlap_voxels: Voxels that more than one segment claimed.
        present: Codes that have voxels, ascending; without regions that nobody reviewed.
        unreviewed: Codes whose voxels nobody checked.
        untouched: Codes left as predicted, outline and name, and not accepted by name.
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
        Codes on ``image``'s grid, whatever the order of axes in the label.

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
    """Return the code of each segment; "vertebrae" shares the sacrum's, as in step 1."""
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
    suggestion = meant_by(name)
    return repr(name) if suggestion is None else answers.or_perhaps(name, suggestion)


def _filled(submission: Submission) -> tuple[Segment, ...]:
    """Return the segments that have voxels, after checking that every voxel has exactly one segment in its layer."""
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
    """Return whether a reader added the segment ``ACCEPTED_MARK``; 3D Slicer sends the names of empty segments, too.

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
    # Inferior before superior, so that the superior one of two overlapping vertebrae or discs wins.
    for code in sorted(set(codes), key=_painted_when):
        for layer in mapped:
            painted[layer == code] = code
    return painted, claims


def _painted_when(code: int) -> tuple[int, int]:
    """Return a key that sorts codes in the order of painting; what nobody reviewed is last and covers the rest."""
    return (len(PAINT_ORDER), 0) if code == UNREVIEWED else (PAINT_ORDER.index(BY_CODE[code].kind), -code)
