"""Compare a submission with its prediction, with other labels, and with what the linter expects.

If a reader renamed one segment of the prediction, the other levels are renamed to match. A structure that was left as
predicted says more about the model than about the reader. Findings are shown to the author of a label and stored with
it; a label is never refused for them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import (
    BACKGROUND,
    BY_CODE,
    CANAL,
    CORD,
    NAME_OF,
    T13,
    UNREVIEWED,
    UNREVIEWED_NAME,
    Kind,
)
from totalspineseg_server.corrections import answers
from totalspineseg_server.corrections.correction_store import Correction
from totalspineseg_server.corrections.label_files import UNCONFIRMED
from totalspineseg_server.corrections.predictions import PredictionMaps, PredictionRecord
from totalspineseg_server.corrections.submission import ACCEPTED_MARK, Mapped, named_codes
from totalspineseg_server.geometry import Grid, LabelArray, Volume, iso_grid, labels_from_iso, same_grid, to_ras
from totalspineseg_server.numbering.findings import Finding
from totalspineseg_server.numbering.linter import lint, missing_kinds
from totalspineseg_server.numbering.renumber import RENAMED_VOXELS, renumber
from totalspineseg_server.segments import (
    DOUBT_MARK,
    Segment,
    Submission,
    code_of_name,
    is_marked,
    is_vertebrae,
    with_mark,
    without_mark,
    without_regions,
)
from totalspineseg_server.transforms.components import labels_present
from totalspineseg_server.trust import Certainty, certainty_of, is_doubtful

Dice = npt.NDArray[np.float64]
"""Dice of each (submitted, predicted) pair of codes."""
ACCEPTED_NAMES: Final = "accepted"
"""Parameter of a submission: names of structures whose prediction the reader checked and found right, or ``ALL``. The
empty segment ``ACCEPTED_MARK`` also means ``ALL``.
"""
ALL: Final = "all"
LEFT: Final = "left_as_predicted"
"""Parameter of a submission: structures left as predicted, from ``stated_left``. It is believed if the prediction is
not here, because it was made at another site or its maps were deleted."""
UNTOUCHED_DICE: Final = 0.98
"""A structure that has a higher Dice with its prediction was left as predicted. Corrections of its neighbors, and
resampling from 1 mm to the grid of the image, lower it less; redrawing a border in a few slices lowers it more."""
RENAMED_SHARE: Final = 0.7
"""Share of both that a segment and a structure of the prediction must have in common to be the same; the rest is an
edited border."""
DIGITS: Final = 4
INCOMPLETE: Final = "incomplete"
"""Kind of the finding for a label that shows only some of the structures in view."""
UNCHANGED: Final = "unchanged"
"""Kind of the finding on a doubtful prediction that was submitted unchanged."""
RENAMED: Final = "renamed"
"""Kind of the finding on a rename that leaves a gap or adds a T13 although the levels were certain."""
GAP: Final = "gap"
"""Kind of the linter's finding on a missing level."""


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
class Recognized:
    """A submitted segment that is also in the prediction, whatever its name.

    Attributes:
        old: Code in the prediction.
        new: Code in the submission.
        value: Value in the submitted map.
        voxels: Number of common voxels.
    """

    old: int
    new: int
    value: int
    voxels: int

    @property
    def renamed(self) -> bool:
        """Whether a reader changed its name."""
        return self.old != self.new


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
    maps: PredictionMaps
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


@dataclass(frozen=True)
class Corrected:
    """The prediction that a submission corrects.

    Attributes:
        prediction: Its record.
        compared: The submission compared with it; None if its maps were deleted or cannot be compared.
    """

    prediction: PredictionRecord
    compared: Compared | None


def compare(submission: Submission, grid: Grid, maps: PredictionMaps) -> Compared | None:
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
    if maps.step != (1 if any(is_vertebrae(s.name) for s in filled) else 2):
        return None
    old = labels_from_iso(maps.labels, maps.iso, grid)
    recognized = _recognized(submission, filled, old, step=maps.step)
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
    output = compared.maps.output()
    found = None if output is None else renumber(output, {change.old: change.new})
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


def _share_grids(submission: Submission, grid: Grid, maps: PredictionMaps) -> bool:
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


def recognize(old: LabelArray, new: LabelArray, code_of: Mapping[int, int]) -> tuple[Recognized, ...]:
    """Find the segments that are also in a prediction; edited borders do not matter.

    Args:
        old: Codes (X, Y, Z) as predicted. Not modified.
        new: Submitted map on the same grid, one value per segment. Not modified.
        code_of: Code that each value of ``new`` stands for now; several values may have one code. Not modified.

    Returns:
        The recognized segments, the largest first. A disc is never recognized as a bone. Cord and canal, which have no
        level, are not included.
    """
    foreground = np.flatnonzero((new != BACKGROUND) | (old != BACKGROUND))
    pairs = new.ravel()[foreground].astype(np.intp) << 8 | old.ravel()[foreground]
    both = np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
    sizes, segment_sizes = both.sum(axis=0), both.sum(axis=1)
    found = []
    for value, code in code_of.items():
        below = both[value].copy()
        below[[BACKGROUND, CORD, CANAL]] = 0
        was, voxels = int(below.argmax()), int(below.max())
        if voxels < RENAMED_VOXELS or not _alike(was, code):
            continue
        if voxels >= RENAMED_SHARE * max(int(sizes[was]), int(segment_sizes[value])):
            found.append(Recognized(was, code, value, voxels))
    return tuple(sorted(found, key=lambda recognized: -recognized.voxels))


def _alike(one: int, other: int) -> bool:
    """Return whether both are discs, or both are bone."""
    kinds = [BY_CODE[code].kind if code in BY_CODE else None for code in (one, other)]
    if None in kinds or {Kind.CORD, Kind.CANAL} & set(kinds):
        return False
    return (kinds[0] is Kind.DISC) == (kinds[1] is Kind.DISC)


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


def with_untouched(
    mapped: Mapped,
    compared: Compared | None,
    accepted: object,
    *,
    marked: Collection[int] = (),
    stated: object = None,
) -> Mapped:
    """Return a submission with the structures that its reader left as predicted, and the Dice of each with its
    prediction.

    Args:
        mapped: The submission in codes, including unreviewed structures. Not modified.
        compared: The submission compared with the prediction that it corrects; None if that is not known or was
            deleted, and then only the structures in ``stated`` count as left as predicted.
        accepted: The parameter ``accepted``: these structures count as if they had been drawn, and their names as
            confirmed.
        marked: Codes that the prediction named as doubtful. If a reader removed the mark, the reader confirmed the
            name.
        stated: The parameter ``LEFT``.

    Raises:
        LabelError: ``accepted`` is not a list of names, or names a structure that has no voxel in the label.
    """
    words = [accepted] if isinstance(accepted, str) else accepted
    if isinstance(words, list) and [str(word).strip().casefold() for word in words] == [ALL]:
        checked = frozenset(mapped.present)
    else:
        checked = named_codes(mapped, accepted, ACCEPTED_NAMES)
    mapped = replace(mapped, unconfirmed=tuple(code for code in mapped.unconfirmed if code not in checked))
    left = set(mapped.present) - checked - set(mapped.unreviewed)
    if compared is None:
        return _with_stated(mapped, stated, left)
    dice = _dice(mapped.codes, compared.predicted)
    untouched, renamed = _as_predicted(dice, left)
    confirmed = set(untouched).intersection(marked) - set(mapped.unconfirmed)
    untouched = tuple(code for code in untouched if code not in confirmed)
    renamed = tuple(sorted({*renamed, *confirmed}))
    measured = {*mapped.present, *np.flatnonzero(labels_present(compared.predicted)).tolist()} - set(mapped.unreviewed)
    own = {NAME_OF[code]: round(float(dice[code, code]), DIGITS) for code in sorted(measured & NAME_OF.keys())}
    return replace(mapped, untouched=untouched, renamed=renamed, dice=own)


def stated_left(
    untouched: Collection[int], renamed: Collection[int], networks: Mapping[str, str]
) -> dict[str, list[str] | dict[str, str]]:
    """Return the structures that a reader left as predicted, as the parameter ``LEFT``.

    Args:
        untouched: Codes whose outline and name are the prediction's.
        renamed: Codes whose outline is the prediction's; the name is a reader's.
        networks: Step ("step1") -> version of the network that made the prediction, or its digits.
    """
    return {
        "untouched": [NAME_OF[code] for code in sorted(untouched)],
        "renamed": [NAME_OF[code] for code in sorted(renamed)],
        "networks": dict(networks),
    }


def stated_prediction(stated: object) -> Mapping[str, Any] | None:
    """Return a prediction that is not here, as a correction's record names it; its id is empty.

    Args:
        stated: The parameter ``LEFT``.

    Returns:
        None if the parameter names no network.
    """
    networks = stated.get("networks") if isinstance(stated, Mapping) else None
    if not isinstance(networks, Mapping) or not networks:
        return None
    return {"id": "", "model": "", "versions": {str(step): str(version) for step, version in networks.items()}}


def _with_stated(mapped: Mapped, stated: object, left: set[int]) -> Mapped:
    """Return a submission with those of the codes ``left`` that its sender says were left as predicted."""
    content = stated if isinstance(stated, Mapping) else {}
    untouched, renamed = (_stated_codes(content.get(key)) & left for key in ("untouched", "renamed"))
    return replace(mapped, untouched=tuple(sorted(untouched)), renamed=tuple(sorted(renamed - untouched)))


def _stated_codes(names: object) -> set[int]:
    found = (code_of_name(name) for name in names if isinstance(name, str)) if isinstance(names, list) else ()
    return {code for code in found if code is not None}


def _dice(codes: LabelArray, predicted: LabelArray) -> Dice:
    counts = np.bincount(codes.ravel().astype(np.intp) << 8 | predicted.ravel(), minlength=1 << 16).reshape(256, 256)
    counts[UNREVIEWED] = 0
    sizes = counts.sum(axis=1, keepdims=True) + counts.sum(axis=0, keepdims=True)
    # Where both overlap, neither is empty.
    return np.divide(2 * counts, sizes, out=np.zeros(counts.shape), where=counts.astype(bool))


def _as_predicted(dice: Dice, left: Collection[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the codes left as predicted under the same name, and those under another name of their kind."""
    untouched, renamed = [], []
    for code in sorted(left):
        other = int(dice[code].argmax())
        if dice[code, other] < UNTOUCHED_DICE:
            continue
        if other == code:
            untouched.append(code)
        elif other in BY_CODE and BY_CODE[other].kind is BY_CODE[code].kind:
            renamed.append(code)
    return tuple(untouched), tuple(renamed)


def check(codes: LabelArray, grid: Grid) -> tuple[Mapping[str, Any], ...]:
    """Check a label map of any orientation with the linter, and for structures that are missing altogether.

    Args:
        codes: (X, Y, Z) codes on ``grid``, ``UNREVIEWED`` where nobody checked. Not modified.
        grid: Grid of the voxels.

    Returns:
        Kind, name, message, voxels and ``point_mm`` (RAS, or None) of each finding; empty for a sound map.
    """
    ras = to_ras(Volume(without_regions(codes), grid.affine))
    findings = (*_incomplete(codes), *lint(np.ascontiguousarray(ras.data), ras.spacing))
    return tuple(finding.as_dict(ras.affine) for finding in findings)


def _incomplete(codes: LabelArray) -> tuple[Finding, ...]:
    """Return a finding if a label lacks whole kinds of structures, for example because the client requested only
    some."""
    missing = missing_kinds(codes)
    if not missing:
        return ()
    return (Finding(INCOMPLETE, BACKGROUND, answers.incomplete(missing, UNREVIEWED_NAME)),)


def finished_meanwhile(in_force: Sequence[Correction], correction: Correction) -> tuple[Mapping[str, Any], ...]:
    """Return a finding if somebody else submitted the same kind of label after the corrected prediction was made.

    Most clients use the name with which their program was installed. Therefore a sender with the same name counts as
    somebody else, unless both labels correct the same prediction, because then one reader is submitting again.

    Args:
        in_force: Accepted corrections of the image that count and are shown under the same tag, oldest first.
        correction: The record of the submission.

    Returns:
        One finding or none; none if the corrected prediction is not known.
    """
    predicted = (correction.prediction or {}).get("id")
    if not predicted:
        return ()
    for other in reversed(in_force):
        same_name = (other.user, other.client) == (correction.user, correction.client)
        if other.id > predicted and not (same_name and (other.prediction or {}).get("id") == predicted):
            message = answers.somebody_else(other.reader, other.received)
            return (Finding("finished_meanwhile", BACKGROUND, message).as_dict(np.eye(4)),)
    return ()


def beside_prediction(
    corrected: Corrected | None, mapped: Mapped, lint: Sequence[Mapping[str, Any]], *, unchanged: bool
) -> tuple[Mapping[str, Any], ...]:
    """Compare a submission with its prediction, and return a finding if the reader should look again.

    Args:
        corrected: The prediction; None if it is not known.
        mapped: The submission in codes, after a rename was applied to the other levels. Not modified.
        lint: The linter's findings in the submission.
        unchanged: Whether the prediction is known, and each submitted structure is exactly as predicted.

    Returns:
        One finding, or none.
    """
    if mapped.unconfirmed:
        names = [with_mark(NAME_OF[code]) for code in mapped.unconfirmed]
        message = answers.unconfirmed(names, DOUBT_MARK, ACCEPTED_MARK)
        return (Finding(UNCONFIRMED, BACKGROUND, message).as_dict(np.eye(4)),)
    if corrected is None or corrected.compared is None:
        return ()
    numbering, compared = corrected.prediction.numbering or {}, corrected.compared
    if unchanged and is_doubtful(numbering):
        return (Finding(UNCHANGED, BACKGROUND, answers.unchanged(_chance(numbering))).as_dict(np.eye(4)),)
    if compared.renamed and certainty_of(numbering) == "certain":
        before = {int(code) for code in np.unique(compared.maps.codes.data)}
        gaps = _gaps(lint) - _gaps(numbering.get("findings"))
        odd = [answers.is_missing(name) for code, name in NAME_OF.items() if code in gaps]
        odd += [answers.THERE_IS_A_T13] if T13 in mapped.present and T13 not in before else []
        if odd:
            (_, change) = compared.renamed[0]
            message = answers.odd_rename(NAME_OF[change.old], NAME_OF[change.new], _chance(numbering), odd)
            return (Finding(RENAMED, change.new, message).as_dict(np.eye(4)),)
    return ()


def _gaps(findings: object) -> set[Any]:
    """Return the codes of missing levels. Findings in a record may have any form, because another version may have
    written it."""
    listed = findings if isinstance(findings, Sequence) else ()
    known = [finding for finding in listed if isinstance(finding, Mapping)]
    return {finding.get("code") for finding in known if finding.get("kind") == GAP}


def is_unchanged(compared: Compared, mapped: Mapped) -> bool:
    """Return whether each submitted structure is exactly as predicted."""
    predicted = np.where(np.isin(compared.predicted, mapped.present), compared.predicted, BACKGROUND)
    return bool((predicted == mapped.codes).all())


def _chance(numbering: Mapping[str, Any]) -> str:
    probability = numbering.get("probability")
    return f" (probability {probability:.2f})" if isinstance(probability, float) else ""
