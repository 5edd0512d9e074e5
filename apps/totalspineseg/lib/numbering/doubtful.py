"""Which levels of a result are not certain."""

from typing import Final

import numpy as np

from lib.anatomy import DISCS, VERTEBRAE
from lib.geometry import LabelArray
from lib.numbering.chain import CONFIDENT_PROBABILITY, Numbering

DOUBTFUL_PROBABILITY: Final = CONFIDENT_PROBABILITY
"""A level below this chance is marked in pictures and left out of measurements."""
NAMED: Final = frozenset({*VERTEBRAE, *DISCS})
"""Structures whose name is a level's; in step 1 the sacrum's code stands for any vertebra."""


def doubtful_codes(numbering: Numbering | None, labels: LabelArray) -> frozenset[int]:
    """Codes of the levels that are not certain.

    A level in the map that the numbering has no probability for (the arch of a vertebra whose body is out of view)
    hangs on its neighbors: it is as certain as the numbering as a whole. Where something speaks against all names (a
    point fixed by hand that no level meets), or the whole is not certain, but each level by itself, none is.

    Args:
        numbering: What the chain model knows; None with the iterative method, which knows no doubt.
        labels: The codes it led to. Not modified.

    Returns:
        The codes; empty with the iterative method.
    """
    if numbering is None:
        return frozenset()
    unsure = {level.code for level in numbering.levels if level.probability < DOUBTFUL_PROBABILITY}
    if not numbering.confident:
        present = set(np.flatnonzero(np.bincount(labels.ravel(order="K"), minlength=256)).tolist())
        named = present & NAMED
        by_themselves = bool(unsure) and not numbering.contradicted
        unsure |= named - {level.code for level in numbering.levels} if by_themselves else named
    return frozenset(unsure)
