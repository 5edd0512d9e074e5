"""Read which structures a reader did not check, and find those that were left as predicted.

Regions below a segment "unreviewed", and listed structures, count neither in a training nor in the gate. A region hides
the structures below it. Listed structures keep their voxels, because the odd discs of step 2 need every disc. A
structure that was left as predicted says more about the model than about the reader.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import BY_CODE, NAME_OF, UNREVIEWED
from totalspineseg_server.corrections import answers
from totalspineseg_server.corrections.renames import Compared
from totalspineseg_server.corrections.submission import Mapped
from totalspineseg_server.errors import LabelError
from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.spellings import code_of_name
from totalspineseg_server.transforms.components import labels_present

UNREVIEWED_NAMES: Final = "unreviewed"
"""Parameter of a submission: a list of names, or one text with commas."""
Dice = npt.NDArray[np.float64]
"""Dice of each (submitted, predicted) pair of codes."""

ACCEPTED_NAMES: Final = "accepted"
"""Parameter of a submission: names of structures whose prediction the reader checked and found right, or ``ALL``. The
empty segment ``names.ACCEPTED_MARK`` also means ``ALL``.
"""
ALL: Final = "all"
UNTOUCHED_DICE: Final = 0.98
"""A structure that has a higher Dice with its prediction was left as predicted. Corrections of its neighbors, and
resampling from 1 mm to the grid of the image, change less; redrawing a border in a few slices changes more."""
DIGITS: Final = 4


def with_untouched(
    mapped: Mapped, compared: Compared | None, accepted: object, *, marked: Collection[int] = ()
) -> Mapped:
    """Return a submission with the structures that its reader left as predicted, and the Dice of each with its
    prediction.

    Args:
        mapped: The submission in codes, including unreviewed structures. Not modified.
        compared: The submission compared with the prediction that it corrects; None if that is not known or was
            deleted, and then no structure counts as left as predicted.
        accepted: The parameter ``accepted``: these structures count as if they had been drawn, and their names as
            confirmed.
        marked: Codes that the prediction named as doubtful. If a reader removed the mark, the reader confirmed the
            name.

    Raises:
        LabelError: ``accepted`` is not a list of names, or names a structure that has no voxel in the label.
    """
    words = [accepted] if isinstance(accepted, str) else accepted
    if isinstance(words, list) and [str(word).strip().casefold() for word in words] == [ALL]:
        checked = frozenset(mapped.present)
    else:
        checked = named_codes(mapped, accepted, ACCEPTED_NAMES)
    mapped = replace(mapped, unconfirmed=tuple(code for code in mapped.unconfirmed if code not in checked))
    if compared is None:
        return mapped
    left = set(mapped.present) - checked - set(mapped.unreviewed)
    dice = _dice(mapped.codes, compared.predicted)
    untouched, renamed = _as_predicted(dice, left)
    confirmed = set(untouched).intersection(marked) - set(mapped.unconfirmed)
    untouched = tuple(code for code in untouched if code not in confirmed)
    renamed = tuple(sorted({*renamed, *confirmed}))
    measured = {*mapped.present, *np.flatnonzero(labels_present(compared.predicted)).tolist()} - set(mapped.unreviewed)
    own = {NAME_OF[code]: round(float(dice[code, code]), DIGITS) for code in sorted(measured & NAME_OF.keys())}
    return replace(mapped, untouched=untouched, renamed=renamed, dice=own)


def _dice(codes: LabelArray, predicted: LabelArray) -> Dice:
    counts = np.bincount(codes.ravel().astype(np.intp) << 8 | predicted.ravel(), minlength=1 << 16).reshape(256, 256)
    counts[UNREVIEWED] = 0
    sizes = counts.sum(axis=1, keepdims=True) + counts.sum(axis=0, keepdims=True)
    return np.asarray(2 * counts / np.maximum(sizes, 1), dtype=np.float64)


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
