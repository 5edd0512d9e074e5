"""Both models over the same scans: the only part of the gate that runs networks."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from lib.agreement import NOTHING_LEFT, CaseScore, Left, score_case
from lib.certainty import Certainty
from lib.errors import GridError, ImageError, NoSpineError
from lib.gate.compare import SubjectScores
from lib.geometry import LabelArray, Volume, on_grid
from lib.pipeline import Options, finish, locate, prepare
from lib.prediction import Predictor


@dataclass(frozen=True)
class Model:
    """The two networks of one version."""

    step1: Predictor
    step2: Predictor


@dataclass(frozen=True)
class JudgedCase:
    """One scan with its truth.

    Attributes:
        name: For logs; no patient name.
        subject: Whom it belongs to.
        image: On any grid.
        truth: Codes on the same grid.
        left: Structures of the truth that speak for one of the models which are compared, and do not count.
    """

    name: str
    subject: str
    image: Volume
    truth: Volume
    left: Left = NOTHING_LEFT


def predict_codes(image: Volume, model: Model) -> LabelArray:
    """The codes of ``predict_named``."""
    return predict_named(image, model)[0]


def predict_named(image: Volume, model: Model) -> tuple[LabelArray, Certainty | None]:
    """The full pipeline on one scan.

    Args:
        image: On any grid. Not modified.
        model: Both networks.

    Returns:
        Codes on the grid of ``image``, all 0 when the model finds no spine; and whether their names are right, None
        where there are none.
    """
    scan = prepare(image)
    options = Options()
    try:
        located = locate(scan, model.step1, options)
        result = finish(located, model.step2, options)
    except NoSpineError:
        return np.zeros(image.data.shape, dtype=np.uint8), None
    return scan.labels_to_input(result.labels), None if result.numbering is None else result.numbering.certainty


def score_models(
    cases: Iterable[JudgedCase],
    *,
    active: Model,
    candidate: Model,
    known: dict[str, CaseScore] | None = None,
    known_candidate: dict[str, CaseScore] | None = None,
    before_each: Callable[[str], None] | None = None,
    on_left_out: Callable[[str, str], None] = lambda *_: None,
) -> tuple[SubjectScores, ...]:
    """Score two models on the same scans; one that no model can be asked about counts for neither.

    Args:
        cases: Scans with their truth.
        active: The model that is served.
        candidate: The model that asks.
        known: Scores of the active model by case name; added to, so that the next candidate costs its own alone.
        known_candidate: The same of the candidate, for the next model it is compared with.
        before_each: Called with each case's name, for progress.
        on_left_out: Told the name and the reason of a scan that the pipeline refuses, or whose truth is not on its
            grid.

    Returns:
        One entry per subject, in order of first appearance; empty for no cases.

    Raises:
        WeightsError: A model cannot be loaded.
        MemoryShortageError: A scan does not fit into memory; left out, a busy machine would decide who judges.
    """
    known, rated = {} if known is None else known, {} if known_candidate is None else known_candidate
    scores: dict[str, list[tuple[CaseScore, CaseScore]]] = {}
    for case in cases:
        if before_each is not None:
            before_each(case.name)
        try:
            case = replace(case, truth=on_grid(case.truth, case.image.grid))
            for model, scores_of in ((active, known), (candidate, rated)):
                if case.name not in scores_of:
                    scores_of[case.name] = score_prediction(case, predict_codes(case.image, model))
        except (ImageError, GridError) as error:
            on_left_out(case.name, str(error))
            continue
        scores.setdefault(case.subject, []).append((known[case.name], rated[case.name]))
    return tuple(
        SubjectScores(subject, tuple(a for a, _ in pairs), tuple(c for _, c in pairs))
        for subject, pairs in scores.items()
    )


def score_prediction(case: JudgedCase, codes: LabelArray) -> CaseScore:
    """Score an answer to a scan.

    Args:
        case: The scan, with its truth on the grid of the image.
        codes: The answer on that grid. Not modified.
    """
    return score_case(case.truth.data, codes, voxel_mm3=math.prod(case.truth.spacing), left=case.left)
