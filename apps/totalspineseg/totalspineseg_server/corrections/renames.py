"""Compare a submission with its prediction; if one segment was renamed, rename the other levels to match."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from totalspineseg_server.anatomy import BY_CODE, NAME_OF, Kind
from totalspineseg_server.certainty import Certainty
from totalspineseg_server.corrections import answers
from totalspineseg_server.corrections.predictions import KeptMaps
from totalspineseg_server.geometry import Grid, LabelArray, iso_grid, labels_from_iso, same_grid
from totalspineseg_server.numbering.renumber import Recognized, recognize, renumber
from totalspineseg_server.segments import Segment, Submission, is_vertebrae
from totalspineseg_server.spellings import code_of_name, is_marked, with_mark, without_mark
from totalspineseg_server.transforms.components import labels_present


@dataclass(frozen=True)
class Followed:
    """A submission after the other levels were renamed to match the one that its reader renamed.

    Attributes:
        submission: The submission with the new names, or as it was sent.
        names: Name as sent -> new name, for the levels that followed; empty if none did.
        report: The changes, as plain JSON values for the reply and the record.
    """

    submission: Submission
    names: Mapping[str, str]
    report: Mapping[str, Any]

    def now(self, names: object) -> object:
        """Return a list of names with new names in place of the sent ones; anything else is returned unchanged."""
        if isinstance(names, str):
            names = [name.strip() for name in names.split(",")]
        if not isinstance(names, list):
            return names
        now = {code_of_name(before): after for before, after in self.names.items()}
        return [now.get(code_of_name(name), name) if isinstance(name, str) else name for name in names]


@dataclass(frozen=True)
class Compared:
    """A submission compared with a prediction of the same step.

    Attributes:
        submission: The submission as sent.
        maps: The maps of the prediction.
        predicted: The codes of the prediction on the grid of the image.
        filled: Segments that have voxels.
        recognized: The segments among them that are also in the prediction.
    """

    submission: Submission
    maps: KeptMaps
    predicted: LabelArray
    filled: tuple[Segment, ...]
    recognized: tuple[tuple[Segment, Recognized], ...]

    @property
    def renamed(self) -> tuple[tuple[Segment, Recognized], ...]:
        """The recognized segments whose names were changed."""
        return tuple(pair for pair in self.recognized if pair[1].renamed)

    @property
    def likeness(self) -> tuple[int, int]:
        """The number of segments that kept their names, and of recognized segments: the larger, the more likely it is
        that this prediction was corrected."""
        return len(self.recognized) - len(self.renamed), len(self.recognized)


def compare(submission: Submission, grid: Grid, maps: KeptMaps) -> Compared | None:
    """Find the segments of a prediction in a submission.

    Args:
        submission: The submission as sent. Not modified.
        grid: Grid of the image.
        maps: The maps of the prediction.

    Returns:
        None if they cannot be compared: the grids differ, or the submission is a map of the other step.
    """
    if not _share_grids(submission, grid, maps):
        return None
    filled = _filled(submission)
    if maps.output.step != (1 if any(is_vertebrae(s.name) for s in filled) else 2):
        return None
    old = labels_from_iso(maps.labels, maps.iso, grid)
    recognized = _recognized(submission, filled, old, step=maps.output.step)
    return Compared(submission, maps, old, tuple(filled), tuple(recognized))


def follow_rename(compared: Compared) -> Followed | None:
    """Rename the other levels to match if exactly one segment was renamed; no voxel changes.

    Returns:
        The result, or None unless exactly one level was renamed. A reader who renames several levels numbers them, so
        they stay as sent.
    """
    if len(compared.renamed) != 1:
        return None
    submission, filled = compared.submission, compared.filled
    (segment, change) = compared.renamed[0]
    found = renumber(compared.maps.output, {change.old: change.new})
    if found is None:
        return Followed(submission, {}, _report(change, {}, None, None))
    codes, numbering = found
    settled = numbering.certainty != "doubtful"
    names = {s.name: _new_name(s, codes, settled=settled) for s in filled if s is not segment}
    after = [names.get(s.name, s.name) if s is not segment else s.name for s in filled]
    after_codes = [code for name in after if (code := code_of_name(name)) is not None]
    if len(set(after_codes)) < len(after_codes):
        return Followed(submission, {}, _report(change, {}, None, None))
    segments = tuple(Segment(name, s.value, s.layer) for name, s in zip(after, filled, strict=True))
    changed = {before: name for before, name in names.items() if without_mark(before) != without_mark(name)}
    report = _report(change, changed, numbering.probability, numbering.certainty)
    return Followed(replace(submission, segments=segments), changed, report)


def _share_grids(submission: Submission, grid: Grid, maps: KeptMaps) -> bool:
    """Return whether a submission is on the image's grid, and a prediction on the 1 mm grid of that image."""
    return same_grid(submission.grid, grid) and same_grid(iso_grid(grid), maps.iso)


def _filled(submission: Submission) -> list[Segment]:
    """Return the segments that have voxels."""
    present = [set(np.flatnonzero(labels_present(layer)).tolist()) for layer in submission.layers]
    return [s for s in submission.segments if s.layer < len(present) and s.value in present[s.layer]]


def _recognized(
    submission: Submission, filled: list[Segment], old: LabelArray, *, step: int
) -> list[tuple[Segment, Recognized]]:
    found = []
    for layer, data in enumerate(submission.layers):
        mine = {s.value: s for s in filled if s.layer == layer}
        codes = {value: code for value, s in mine.items() if (code := _level_code(s, step))}
        found += [(mine[segment.value], segment) for segment in recognize(old, data, codes)]
    return found


def _level_code(segment: Segment, step: int) -> int:
    """Return the level that a segment stands for; 0 if it stands for none."""
    code = code_of_name(segment.name)
    if code is None or BY_CODE[code].kind in (Kind.CORD, Kind.CANAL):
        return 0
    return 0 if step == 1 and BY_CODE[code].kind is Kind.SACRUM else code


def _new_name(segment: Segment, codes: Mapping[int, int], *, settled: bool) -> str:
    """Return the new name of a level; a mark of doubt is removed if the renamed level makes the names certain."""
    code = code_of_name(segment.name)
    new = codes.get(code, code) if code is not None else None
    name = segment.name if new is None or new == code else NAME_OF[new]
    return with_mark(without_mark(name)) if is_marked(segment.name) and not settled else without_mark(name)


def _report(
    change: Recognized, names: dict[str, str], probability: float | None, certainty: Certainty | None
) -> Mapping[str, Any]:
    was, now = NAME_OF[change.old], NAME_OF[change.new]
    if names:
        message = answers.followed(was, now, names)
    elif probability is None:
        message = answers.cannot_follow(was, now)
    else:
        message = answers.nothing_to_follow(was, now)
    return {
        "renamed": {"from": was, "to": now},
        "names": names,
        "probability": None if probability is None else round(probability, 4),
        "certainty": certainty,
        "message": message,
    }
