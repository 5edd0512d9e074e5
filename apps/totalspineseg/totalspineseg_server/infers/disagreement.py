"""Measure where the networks answer differently when they are asked in another way."""

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
"""Facts of ``PredictionRecord.disagreement``."""
OTHER_SIZE: Final = 0.9
"""Size at which an image is looked at again: bodies differ by as much."""


def disagreement_of(step1: Step1Names | None, labels: LabelArray, mirrors: Sequence[float | None]) -> dict[str, float]:
    """Return what is known of a prediction without running a network again.

    Args:
        step1: What step 1 had named where step 2 looked; None where that is not known. Not modified.
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
    """Return the share of levels that come out otherwise when an image is taken for one of a smaller person.

    Args:
        image: The image. Not modified.
        labels: Codes of its result on the 1 mm grid. Not modified.
        iso: That grid.
        step1: The networks of that result.
        step2: See ``step1``.

    Returns:
        0..1; 1 where no spine is found any more.
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
