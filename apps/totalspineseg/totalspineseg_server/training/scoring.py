"""Score two models on the same scans, of the site or of the fixed reference set, which is never used for training.

Only this part of the gate runs networks.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Final

import numpy as np

from totalspineseg_server.agreement import GROUPS, LEVELS, MEASURES, NOTHING_LEFT, CaseScore, Left, score_case
from totalspineseg_server.errors import GridError, ImageError, NoSpineError
from totalspineseg_server.geometry import LabelArray, Volume, on_grid
from totalspineseg_server.pipeline import Options, finish, locate, prepare
from totalspineseg_server.prediction import Predictor
from totalspineseg_server.synthesis import Field, RenderOptions, SpineOptions, random_spine, render
from totalspineseg_server.training.compare import SubjectScores
from totalspineseg_server.trust import Certainty

SEED: Final = 40_417
"""First part of every reference scan's seed; no other synthetic set of the project uses it."""
FIELDS: Final = (Field.LUMBAR, Field.CERVICOTHORACIC, Field.THORACOLUMBAR, Field.CERVICAL, Field.LUMBAR, Field.WHOLE)
CONTRASTS: Final = ("T2", "T1", "T2", "T2", "STIR", "T1")
WIDTH_MM: Final = 70.0
"""Extent right to left: narrow, as in sagittal spine scans."""

HANDLED: Final = 0.5
"""Mean Dice and share of correctly named levels that weights must reach on a synthetic spine to *handle* it. Weights
trained on such spines reach 0.8 and more. A spine that the weights in use do not handle cannot show what a candidate
forgot, and neither can a structure of a spine on which they do not reach this Dice."""


@dataclass(frozen=True)
class Model:
    """The two networks of one version."""

    step1: Predictor
    step2: Predictor


@dataclass(frozen=True)
class JudgedCase:
    """One scan with its truth.

    Attributes:
        name: Name for logs; never a patient's.
        subject: Subject that it belongs to.
        image: The scan, on any grid.
        truth: Codes on the same grid.
        left: Structures of the truth that a reader left as one of the compared models predicted them; they do not
            count.
    """

    name: str
    subject: str
    image: Volume
    truth: Volume
    left: Left = NOTHING_LEFT


def predict_named(image: Volume, model: Model) -> tuple[LabelArray, Certainty | None]:
    """Run the full pipeline on one scan.

    Args:
        image: The scan, on any grid. Not modified.
        model: Both networks.

    Returns:
        Codes on the grid of ``image`` and the certainty of their names; all 0 and None if the model finds no spine.
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
    """Score two models on the same scans; a scan that cannot be segmented or compared counts for neither.

    Args:
        cases: Scans with their truth. Not modified.
        active: The model in use.
        candidate: The new model.
        known: Scores of the active model by case name. New scores are added, so that the next candidate is compared
            without running the active model again.
        known_candidate: The same for the candidate, so that it can be compared with another model next.
        before_each: Called with each case's name, for progress.
        on_left_out: Called with the name and the reason of a scan that the pipeline refuses, or whose truth is not on
            its grid.

    Returns:
        One entry per subject, in order of first appearance; empty for no cases.

    Raises:
        WeightsError: A model cannot be loaded.
        MemoryShortageError: A scan does not fit into memory. It is not left out, because the verdict would then depend
            on how busy the machine is.
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
                    scores_of[case.name] = score_prediction(case, *predict_named(case.image, model))
        except (ImageError, GridError) as error:
            on_left_out(case.name, str(error))
            continue
        scores.setdefault(case.subject, []).append((known[case.name], rated[case.name]))
    return tuple(
        SubjectScores(subject, tuple(a for a, _ in pairs), tuple(c for _, c in pairs))
        for subject, pairs in scores.items()
    )


def score_prediction(case: JudgedCase, codes: LabelArray, certainty: Certainty | None = None) -> CaseScore:
    """Return the score of a model's answer to a scan.

    Args:
        case: The scan, with its truth on the grid of the image.
        codes: The answer on that grid. Not modified.
        certainty: Certainty of the names in the answer; None if it is not known.
    """
    score = score_case(case.truth.data, codes, voxel_mm3=math.prod(case.truth.spacing), left=case.left)
    return replace(score, is_doubtful=certainty == "doubtful")


def handles(values: Mapping[str, float]) -> bool:
    """Return whether weights handle a synthetic spine, given their scores on it.

    Args:
        values: Measure -> value that the weights reach; nan where it does not apply. Not modified.
    """
    dice = [values[group] for group in GROUPS if not np.isnan(values[group])]
    return bool(dice) and float(np.mean(dice)) >= HANDLED and not values[LEVELS] < HANDLED


def handled(reference: Sequence[SubjectScores]) -> list[SubjectScores]:
    """Return the spines that the first scored model handles, without the structures on which it fails.

    Args:
        reference: Scores of two models on synthetic spines. Not modified.
    """
    return [
        _without_failures(entry)
        for entry in reference
        if all(handles({measure: score.value(measure) for measure in MEASURES}) for score in entry.active)
    ]


def named(reference: Sequence[SubjectScores]) -> list[SubjectScores]:
    """Return the spines without those whose names both models call doubtful, because such names are a guess of both.

    A spine stays if one of the models does not doubt its names: wrong names without a doubt count.

    Args:
        reference: Scores of two models on synthetic spines. Not modified.
    """
    return [entry for entry in reference if not all(s.is_doubtful for s in (*entry.active, *entry.candidate))]


def _without_failures(entry: SubjectScores) -> SubjectScores:
    """Set Dice to nan for both models where the first one fails."""
    fails = [{group for group, value in score.dice.items() if value < HANDLED} for score in entry.active]
    active, candidate = (tuple(map(_without, scores, fails)) for scores in (entry.active, entry.candidate))
    return replace(entry, active=active, candidate=candidate)


def _without(score: CaseScore, groups: Collection[str]) -> CaseScore:
    return replace(score, dice={group: nan if group in groups else value for group, value in score.dice.items()})


def reference_cases(count: int, *, spacing_mm: float = 1.0) -> Iterator[JudgedCase]:
    """Yield the reference set, one scan at a time.

    Args:
        count: Number of scans; the first ones are the same for every count.
        spacing_mm: Voxel size in all directions.

    Yields:
        Scans with their truth; each is a subject of its own.
    """
    for number in range(count):
        rng = np.random.default_rng([SEED, number])
        kind = number % len(FIELDS)
        options = SpineOptions(
            field=FIELDS[kind],
            thoracic=12,
            lumbar=5,
            spacing_mm=(spacing_mm, spacing_mm, spacing_mm),
            width_mm=WIDTH_MM,
            jitter=0.7,
        )
        spine = random_spine(rng, options)
        image = render(rng, spine, RenderOptions(contrast=CONTRASTS[kind], strength=0.5))
        name = f"reference-{number + 1}"
        yield JudgedCase(name, name, Volume(image, spine.affine), Volume(spine.labels, spine.affine))
