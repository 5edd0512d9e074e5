"""Collect the names of step 1 for the levels that step 2 is going to name."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from totalspineseg_server.anatomy import BACKGROUND, DISCS, Kind
from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.numbering.chain import Numbering
from totalspineseg_server.numbering.evidence import Localizer, Step1Names, landmark_shares
from totalspineseg_server.numbering.evidence_weights import MOSTLY

OTHER_SHARE: Final = 0.01
"""Smallest probability that the right name is one that step 1 did not consider, whatever it saw as a landmark."""


def step1_names(labels: LabelArray, numbering: Numbering | None) -> Step1Names | None:
    """Return the names of a step-1 result with their probabilities.

    Args:
        labels: Its codes (X, Y, Z). Not modified.
        numbering: Its numbering; None for the iterative method, which has no probabilities.

    Returns:
        The names of its discs; None without a numbering or without a disc.
    """
    if numbering is None:
        return None
    names = {level.code: _chances(numbering, k) for k, level in enumerate(numbering.levels) if level.kind is Kind.DISC}
    if not names:
        return None
    own = np.full(256, BACKGROUND, dtype=np.uint8)
    own[list(names)] = list(names)
    return Step1Names(
        Localizer(own[labels], names),
        numbering.probability,
        numbering.certainty,
        numbering.usual,
        numbering.as_usual,
        frozenset(
            code
            for code, piece in zip(numbering.naming.discs, numbering.pieces.discs, strict=True)
            if landmark_shares(piece).get(code, 0.0) > MOSTLY
        ),
    )


def names_by_reader(labels: LabelArray) -> Step1Names:
    """Return the names of a step-1 map that a reader corrected; they are certain.

    Args:
        labels: Its codes (X, Y, Z), or those of a finished map. Not modified.

    Returns:
        The names of its discs only: in step 1 the sacrum's code stands for every vertebra but C1.
    """
    discs = np.where(np.isin(labels, DISCS), labels, BACKGROUND)
    return Step1Names(Localizer(discs, by_reader=True), 1.0, "certain", 1.0, 1.0)


def _chances(numbering: Numbering, k: int) -> Mapping[int, float]:
    """Return disc code -> probability that it is the name of the k-th level; every disc has some."""
    chances = dict.fromkeys(DISCS, OTHER_SHARE / len(DISCS))
    chances[numbering.levels[k].code] += numbering.levels[k].probability
    for alternative in numbering.alternatives:
        if alternative.codes[k] in chances and alternative.codes[k] != numbering.levels[k].code:
            chances[alternative.codes[k]] += alternative.probability
    total = sum(chances.values())
    return {code: chance / total for code, chance in chances.items()}
