"""Which levels of a result are doubtful."""

from typing import Final

import numpy as np

from lib.anatomy import DISCS, VERTEBRAE
from lib.geometry import LabelArray
from lib.numbering.chain import CONFIDENT_PROBABILITY, Numbering

DOUBTFUL_PROBABILITY: Final = CONFIDENT_PROBABILITY
"""A level of a doubtful numbering below this chance is marked in pictures and measurements."""
NAMED: Final = frozenset({*VERTEBRAE, *DISCS})
"""Structures whose name is a level's; in step 1 the sacrum's code stands for any vertebra."""


def doubtful_codes(numbering: Numbering | None, labels: LabelArray) -> frozenset[int]:
    """Codes of the levels that are doubtful: none of a numbering that is certain or counted.

    A level in the map that the numbering has no probability for (the arch of a vertebra whose body is out of view)
    hangs on its neighbors: it is as certain as the numbering as a whole. Where something speaks against all names (a
    point fixed by hand that no level meets), or the whole is doubtful, but each level by itself is not, all are.

    Args:
        numbering: What the chain model knows; None with the iterative method, which knows no doubt.
        labels: The codes it led to. Not modified.

    Returns:
        The codes; empty with the iterative method.
    """
    if numbering is None or numbering.certainty != "doubtful":
        return frozenset()
    unsure = {level.code for level in numbering.levels if level.probability < DOUBTFUL_PROBABILITY}
    present = set(np.flatnonzero(np.bincount(labels.ravel(order="K"), minlength=256)).tolist())
    named = present & NAMED
    by_themselves = bool(unsure) and not numbering.contradicted
    unsure |= named - {level.code for level in numbering.levels} if by_themselves else named
    return frozenset(unsure)
