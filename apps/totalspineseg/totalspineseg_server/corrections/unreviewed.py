"""Read what an annotator did not check: a segment "unreviewed" over a region, or a list of structures.

Such voxels count neither in training nor in the gate. A region hides what lies below it. Listed structures keep their
voxels, because the odd discs of step 2 need every disc.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from totalspineseg_server.anatomy import BACKGROUND, NAME_OF, UNREVIEWED
from totalspineseg_server.corrections import answers
from totalspineseg_server.corrections.names import Mapped
from totalspineseg_server.errors import LabelError
from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.spellings import code_of_name

PARAMETER: Final = "unreviewed"
"""Parameter of a submission: a list of names, or one text with commas."""


def with_unreviewed(mapped: Mapped, names: object) -> Mapped:
    """Return a submission with the structures that its annotator did not check.

    Args:
        mapped: In codes. Not modified.
        names: The parameter ``unreviewed``; None or empty if everything was checked.

    Raises:
        LabelError: Not a list of names, an unknown one, or one that has no voxel in the label.
    """
    region = answers.or_mark_region(PARAMETER)
    codes = named_codes(mapped, names, PARAMETER, or_else=region)
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
        or_else: What else the author can do, for the message on a name that is not in the label.

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


def without_regions(codes: LabelArray) -> LabelArray:
    """Return codes as clients and checks see them: background where a region was not reviewed.

    Args:
        codes: uint8. Not modified.
    """
    return np.where(codes == UNREVIEWED, BACKGROUND, codes).astype(np.uint8)
