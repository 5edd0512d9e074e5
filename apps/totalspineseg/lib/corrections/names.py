"""From segment names to codes: the only road by which a client's label becomes one of ours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from lib.anatomy import (
    BACKGROUND,
    BY_CODE,
    SACRUM,
    STEP1_FROM_CODE,
    UNREVIEWED,
    UNREVIEWED_NAME,
    VERTEBRAE,
    Kind,
)
from lib.corrections.wire import REVIEW_PREFIX, VERTEBRAE_NAME, is_vertebrae
from lib.errors import LabelError
from lib.geometry import Grid, LabelArray
from lib.segments import Segment, Submission
from lib.spellings import code_of_name, meant_by

PAINT_ORDER: Final = (Kind.DISC, Kind.VERTEBRA, Kind.CANAL, Kind.CORD, Kind.SACRUM)
"""Where segments overlap the later kind stays, as where the pipeline paints its own result."""
NAMES_SHOWN: Final = 5
"""How many names or values a message lists; a sentence stays readable."""


@dataclass(frozen=True)
class Mapped:
    """A submission in codes.

    Attributes:
        codes: (X, Y, Z) uint8 on the grid of the image.
        step: 1 when the label is a corrected step-1 map (it has "vertebrae" in one piece), else 2.
        overlap_voxels: Voxels that more than one segment claimed.
        present: Codes that have voxels, ascending; a region nobody reviewed is not among them.
        unreviewed: Codes whose voxels nobody checked.
        untouched: Codes left as predicted, outline and name, and not accepted by name.
        renamed: Codes whose outline was left as predicted under another name.
        unchanged: See ``Correction``.
    """

    codes: LabelArray
    step: int
    overlap_voxels: int
    present: tuple[int, ...]
    unreviewed: tuple[int, ...] = ()
    untouched: tuple[int, ...] = ()
    renamed: tuple[int, ...] = ()
    unchanged: bool = False


def map_names(submission: Submission, image: Grid) -> Mapped:
    """Turn a submission into codes by the names of its segments; one without voxels says nothing, whatever its name.

    3D Slicer adds an empty segment for each published name that the scene lacks, so whoever renames L3 sends another,
    empty L3.

    Args:
        submission: The label file as read. Not modified.
        image: Grid of the image it belongs to.

    Returns:
        Codes on ``image``'s grid, whatever the index order of the label.

    Raises:
        LabelError: An unknown name, two segments for one structure, a value without a name, or no voxel at all.
        GridError: The label lies on other voxels.
    """
    submission = submission.on(image)
    filled = _filled(submission)
    _require_no_review(filled)
    painted, claims = _paint(submission.layers, filled, _codes(filled))
    present = tuple(int(code) for code in np.unique(painted) if code not in (BACKGROUND, UNREVIEWED))
    if not present:
        raise LabelError("The label is empty. Draw something, or load a result, and submit again.")
    step = 1 if any(is_vertebrae(segment.name) for segment in filled) else 2
    if step == 1:
        _require_step1(present)
    return Mapped(painted, step, int((claims > 1).sum()), present)


def _folded(segment: Segment) -> str:
    return segment.name.strip().casefold()


def _codes(segments: tuple[Segment, ...]) -> tuple[int, ...]:
    """The code of each segment; "vertebrae" shares the sacrum's, as in step 1."""
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
            raise LabelError(
                f"The segments {named[structure]!r} and {segment.name!r} stand for the same structure. Merge them, or "
                "rename one."
            )
        named[structure] = segment.name
        codes.append(code)
    if unknown:
        raise LabelError(
            f"The server does not know the segment name{'' if len(unknown) == 1 else 's'} "
            f"{_listed(unknown, _and_meant)}. Rename or remove {'this segment' if len(unknown) == 1 else 'them'}."
        )
    return tuple(codes)


def _listed(names: list[str], told: Callable[[str], str] = repr) -> str:
    return ", ".join(map(told, names[:NAMES_SHOWN])) + (" and others" if len(names) > NAMES_SHOWN else "")


def _and_meant(name: str) -> str:
    """An unknown name, with the published one it may stand for; that is for its author to say."""
    meant = meant_by(name)
    return repr(name) if meant is None else f"{name!r} ({meant!r}?)"


def _filled(submission: Submission) -> tuple[Segment, ...]:
    """The segments that have voxels, after checking that every voxel has exactly one segment in its layer."""
    by_place = {(segment.layer, segment.value): segment for segment in submission.segments}
    if len(by_place) < len(submission.segments):
        raise LabelError("The file has one value for two segments. Save the segmentation again.")
    if any(not 0 <= segment.layer < len(submission.layers) for segment in submission.segments):
        raise LabelError(
            f"A segment lies in none of the {len(submission.layers)} layers of the file. Save the segmentation again."
        )
    filled = []
    for layer, data in enumerate(submission.layers):
        for value in (int(v) for v in np.unique(data) if v != BACKGROUND):
            if (layer, value) not in by_place:
                raise LabelError(
                    f"The label has voxels of value {value} without a name. Submit all segments with their names."
                )
            filled.append(by_place[layer, value])
    return tuple(filled)


def _require_no_review(filled: tuple[Segment, ...]) -> None:
    marks = [segment.name for segment in filled if _folded(segment).startswith(REVIEW_PREFIX)]
    if marks:
        raise LabelError(
            f"The label still has review marks ({_listed(marks)}), which hide the structures below. Remove the marks, "
            "check what was below, and submit again."
        )


def _require_step1(present: tuple[int, ...]) -> None:
    """Check that a map with "vertebrae" in one piece holds no single vertebra but C1."""
    single = [BY_CODE[c].name for c in present if c in VERTEBRAE and STEP1_FROM_CODE[c] == STEP1_FROM_CODE[SACRUM]]
    if single:
        raise LabelError(
            f"The label has {VERTEBRAE_NAME!r} in one piece (step 1) and single vertebrae ({_listed(single)}). Remove "
            f"{VERTEBRAE_NAME!r} from a finished label, or the single vertebrae from a step-1 label."
        )


def _paint(
    layers: tuple[LabelArray, ...], segments: tuple[Segment, ...], codes: tuple[int, ...]
) -> tuple[LabelArray, LabelArray]:
    """Codes, and how many segments claim each voxel."""
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
    # Inferior before superior, so that of two overlapping vertebrae or discs the superior one stays.
    for code in sorted(set(codes), key=_painted_when):
        for layer in mapped:
            painted[layer == code] = code
    return painted, claims


def _painted_when(code: int) -> tuple[int, int]:
    """Sorts codes as they are painted; what nobody reviewed is last, whatever lies below."""
    return (len(PAINT_ORDER), 0) if code == UNREVIEWED else (PAINT_ORDER.index(BY_CODE[code].kind), -code)
