"""Measure how much the networks disagree: about the mirrored image, about another size, or step 1 with step 2."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from totalspineseg_server import pipeline
from totalspineseg_server.agreement import levels_apart
from totalspineseg_server.anatomy import DISCS, SACRUM, VERTEBRAE
from totalspineseg_server.errors import NoSpineError
from totalspineseg_server.geometry import Grid, LabelArray, Volume, labels_from_iso
from totalspineseg_server.numbering.evidence import Step1Names
from totalspineseg_server.prediction import Predictor

STEPS: Final = "steps"
MIRROR: Final = "mirror"
"""Keys of ``PredictionRecord.disagreement``."""
OTHER_SIZE: Final = 0.9
"""Factor by which an image is shrunk before it is predicted again: people differ in size by about as much."""


def disagreement_of(step1: Step1Names | None, labels: LabelArray, mirrors: Sequence[float | None]) -> dict[str, float]:
    """Return how much the networks disagreed in a prediction, as far as that is known without running them again.

    Args:
        step1: Codes of step 1 in the region of step 2; None if they are not known. Not modified.
        labels: Codes of step 2 there. Not modified.
        mirrors: How much each network's answers for the image and its mirror differ.

    Returns:
        ``PredictionRecord.disagreement``.
    """
    found = {}
    if step1 is not None:
        steps = levels_apart(step1.discs.codes.astype(np.uint8), labels)
        if steps is not None:
            found[STEPS] = round(steps, 4)
    known = [mirror for mirror in mirrors if mirror is not None]
    if known:
        found[MIRROR] = round(max(known), 4)
    return found


def scale_difference(image: Volume, labels: LabelArray, iso: Grid, step1: Predictor, step2: Predictor) -> float:
    """Return the share of levels that change if the image is scaled like that of a smaller person.

    Args:
        image: The image. Not modified.
        labels: Codes of its result on the 1 mm grid. Not modified.
        iso: That grid.
        step1: The networks of that result.
        step2: See ``step1``.

    Returns:
        0..1; 1 if no spine is found then.
    """
    smaller = image.affine.copy()
    smaller[:3] *= OTHER_SIZE
    try:
        located = pipeline.locate(pipeline.prepare(Volume(image.data, smaller)), step1)
        found = pipeline.finish(located, step2)
    except NoSpineError:
        return 1.0
    here, again = labels_from_iso(labels, iso, image.grid), found.scan.labels_to_input(found.labels)
    codes = (*VERTEBRAE, SACRUM, *DISCS)
    apart = levels_apart(here, again, codes, voxel_mm3=float(np.prod(image.spacing)))
    return 1.0 if apart is None else round(apart, 4)
