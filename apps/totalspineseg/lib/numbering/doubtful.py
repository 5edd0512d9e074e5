"""The levels of a result that are doubtful."""

from typing import Final

import numpy as np

from lib.anatomy import DISCS, VERTEBRAE
from lib.geometry import LabelArray
from lib.numbering.chain import CONFIDENT_PROBABILITY, Numbering

DOUBTFUL_PROBABILITY: Final = CONFIDENT_PROBABILITY
"""A level of a doubtful numbering below this probability is marked in pictures and measurements."""
NAMED: Final = frozenset({*VERTEBRAE, *DISCS})
"""Structures that name one level; in step 1 the sacrum's code stands for any vertebra."""


def doubtful_codes(numbering: Numbering | None, labels: LabelArray) -> frozenset[int]:
    """Return the codes of the doubtful levels: none if the numbering is certain or counted.

    A level of the map for which the numbering has no probability (the arch of a vertebra whose body is out of view)
    depends on its neighbors, so it is as certain as the whole numbering. All levels are doubtful where something
    contradicts all names (a pin that no level is near), or where the whole is doubtful but no single level is.

    Args:
        numbering: The numbering; None with the iterative method, which has no doubts.
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
