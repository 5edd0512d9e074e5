"""What is known about the levels of one scan, as its record tells it."""

from typing import Any, Final

import numpy as np

from lib.anatomy import BACKGROUND, DISCS, SACRUM, STRUCTURES, VERTEBRAE, Kind
from lib.corrections.wire import VERTEBRAE_NAME
from lib.geometry import LabelArray
from lib.numbering.chain import CONFIDENT_PROBABILITY, Numbering
from lib.transforms.pieces import Step

DOUBTFUL_PROBABILITY: Final = CONFIDENT_PROBABILITY
"""A level below this chance is marked in pictures and left out of measurements."""
NAMED: Final = frozenset({*VERTEBRAE, *DISCS})
"""Structures whose name is a level's; in step 1 the sacrum's code stands for any vertebra."""


def doubtful_codes(numbering: Numbering | None, labels: LabelArray) -> frozenset[int]:
    """Codes of the levels that are not certain.

    A level in the map that the numbering has no probability for (the arch of a vertebra whose body is out of view)
    hangs on its neighbors: it is as certain as the numbering as a whole. Where the whole is not certain, but each level
    by itself (a point fixed by hand that no level meets), none is.

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
        unsure |= named - {level.code for level in numbering.levels} if unsure else named
    return frozenset(unsure)


def structures_json(labels: LabelArray, spacing: tuple[float, float, float], *, step: Step) -> list[dict[str, Any]]:
    """Every structure in a label map with its volume.

    Args:
        labels: Codes. Not modified.
        spacing: Voxel size, mm.
        step: Whose result it is; in step 1 the sacrum's code is the name of all vertebrae but C1.

    Returns:
        One ``{"code", "name", "kind", "volume_ml"}`` per structure, in the order of the label table.
    """
    counts = np.bincount(labels.ravel(order="K"), minlength=256)
    voxel_ml = float(np.prod(spacing)) / 1000
    found = [
        {"code": s.code, "name": s.name, "kind": s.kind.value, "volume_ml": round(float(counts[s.code]) * voxel_ml, 3)}
        for s in STRUCTURES
        if counts[s.code] and s.code != BACKGROUND
    ]
    together = {"name": VERTEBRAE_NAME, "kind": VERTEBRAE_NAME}
    return [row | together if step == 1 and row["code"] == SACRUM else row for row in found]


def levels_in_view(structures: list[dict[str, Any]], *, step: Step) -> str:
    """ "T11 - sacrum" from ``structures_json``: the first and last vertebra; discs in step 1 and without vertebrae."""
    bones = {kind.value for kind in (Kind.VERTEBRA, Kind.SACRUM)} if step == 2 else set()
    names = [s["name"] for s in structures if s["kind"] in bones]
    names = names or [s["name"] for s in structures if s["kind"] == Kind.DISC.value]
    if not names:
        return ""
    return names[0] if len(names) == 1 else f"{names[0]} - {names[-1]}"
