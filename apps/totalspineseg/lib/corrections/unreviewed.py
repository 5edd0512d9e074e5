"""What an annotator did not look at: a segment "unreviewed" over a region, or names of structures left as predicted.

Such voxels carry no loss in training and no score in the gate. A region hides what lies below it; structures named
keep their voxels, since step 2's odd discs need every disc there is.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from lib.anatomy import BACKGROUND, NAME_OF, UNREVIEWED
from lib.corrections.names import Mapped
from lib.errors import LabelError
from lib.geometry import LabelArray
from lib.spellings import code_of_name

PARAMETER: Final = "unreviewed"
"""Of a submission: a list of names, or one text with commas."""


def with_unreviewed(mapped: Mapped, names: object) -> Mapped:
    """A submission with the structures its annotator says not to have checked.

    Args:
        mapped: In codes. Not modified.
        names: What came as the parameter ``unreviewed``; None and empty leave everything reviewed.

    Raises:
        LabelError: Not a list of names, an unknown one, or one that has no voxel in the label.
    """
    region = f", or mark a region that nobody checked with a segment named {PARAMETER!r}"
    codes = named_codes(mapped, names, PARAMETER, or_else=region)
    if codes and codes == set(mapped.present):
        listed = ", ".join(NAME_OF[code] for code in sorted(codes))
        raise LabelError(f"Every structure of the label is listed as unreviewed ({listed}). Check at least one.")
    return replace(mapped, unreviewed=tuple(sorted(codes)))


def named_codes(mapped: Mapped, names: object, parameter: str, *, or_else: str = "") -> frozenset[int]:
    """Return the codes of structures that a parameter of a submission lists by name.

    Args:
        mapped: The submission in codes. Not modified.
        names: A list of names, or one text with commas; None lists nothing.
        parameter: Its name, for messages.
        or_else: What else the author can do, for the message on a name that is not in the label.

    Raises:
        LabelError: Not a list of names, an unknown one, or one that has no voxel in the label.
    """
    words = names.split(",") if isinstance(names, str) else names or []
    if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise LabelError(f"{parameter!r} must be a list of structure names, got {names!r}. Send names such as 'T12'.")
    codes = set()
    for word in filter(None, (word.strip() for word in words)):
        code = code_of_name(word)
        if code is None or code not in mapped.present:
            raise LabelError(
                f"{parameter!r} names {word!r}, which is no structure in the label. Name structures that are{or_else}."
            )
        codes.add(code)
    return frozenset(codes)


def without_regions(codes: LabelArray) -> LabelArray:
    """A map of codes as clients and checks see it: background where a region was not reviewed.

    Args:
        codes: uint8. Not modified.
    """
    return np.where(codes == UNREVIEWED, BACKGROUND, codes).astype(np.uint8)
