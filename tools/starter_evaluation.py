"""Evaluate how well two models segment and name unseen synthetic spines.

Dice and levels (in view, found, named right) are counted as in the gate, by ``agreement``. A structure that is
found although the truth has none, or only a sliver of it, also counts in its Dice.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from totalspineseg_server import pipeline
from totalspineseg_server.agreement import GROUPS, CaseScore, dice_by_group, score_case
from totalspineseg_server.anatomy import STEP1_REGIONS
from totalspineseg_server.errors import NoSpineError
from totalspineseg_server.geometry import Volume
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.predictor import WarmPredictor
from totalspineseg_server.nnunet.starter_plans import STARTER_FOLDERS
from totalspineseg_server.numbering.linter import lint
from totalspineseg_server.prediction import Predictor
from totalspineseg_server.synthesis import (
    Field,
    RenderOptions,
    SpineOptions,
    SyntheticSpine,
    random_spine,
    render,
    step1_classes,
)

EVALUATION_SEED: Final = 1_000_003
"""Seed of the evaluation, far from every seed of training, so that its spines are unseen."""
WIDTH_MM, DEPTH_MM = 80.0, 200.0
"""Extent of the evaluated scans, as of a usual sagittal series; scans of whole columns are as tall as the column."""
LEVEL_FINDINGS: Final = ("gap", "duplicate", "order", "disc_between", "reach", "wide")
"""Findings of the linter on names and levels; a loose fragment is only a ragged border."""


@dataclass(frozen=True)
class SpineScore:
    """The score of one spine.

    Attributes:
        field: Part of the column in view.
        contrast: Contrast of the image.
        column: "normal" or its variant.
        step1: Dice by step-1 region of the raw network; nan as in ``CaseScore``.
        result: Score of the finished labels.
        flagged: See ``is_flagged``; also True for a scan in which no spine was found.
        seconds: Time from the image to the named segmentation.
    """

    field: str
    contrast: str
    column: str
    step1: Mapping[str, float]
    result: CaseScore
    flagged: bool
    seconds: float

    @property
    def found_right(self) -> bool:
        """Whether some level is found, and every found one is named right; others may be missing."""
        return self.result.levels_right == self.result.levels_found > 0

    @property
    def all_right(self) -> bool:
        """Whether every level in view is found and named right."""
        return self.result.levels_right == self.result.levels > 0


@dataclass(frozen=True)
class Report:
    """Scores of all cases."""

    cases: tuple[SpineScore, ...] = field(default_factory=tuple)

    def dice(self, step: int, name: str) -> tuple[float, ...]:
        """Return the Dice of a region (step 1) or group (step 2), for each case to which it applies."""
        scores = ((c.step1 if step == 1 else c.result.dice)[name] for c in self.cases)
        return tuple(s for s in scores if not math.isnan(s))

    def seconds(self, view: Field | None = None) -> float:
        """Return the mean seconds for a scan, of one field of view or of all; NaN if there is no such scan."""
        return _mean(c.seconds for c in self.cases if view is None or c.field == view.value)

    def table(self) -> str:
        """Return the report as Markdown."""
        lines = ["| step | structure | mean Dice | cases |", "|---|---|---|---|"]
        for step, names in ((1, tuple(STEP1_REGIONS)), (2, tuple(GROUPS))):
            for name in names:
                scores = self.dice(step, name)
                lines.append(f"| {step} | {name} | {_figure(_mean(scores), 2)} | {len(scores)} |")
        lines += [
            "",
            "| part | scans | mean Dice | levels in view | found | of these named right | "
            "scans with every level found and right | with every found level right | the others, flagged | s a scan |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for part in [*dict.fromkeys(c.field for c in self.cases), *dict.fromkeys(c.contrast for c in self.cases)]:
            lines.append(_row(part, Report(tuple(c for c in self.cases if part in (c.field, c.contrast)))))
        lines.append(_row("all", self))
        return "\n".join(lines)


def _row(name: str, report: Report) -> str:
    """Return one row of the table: mean Dice over the groups of the result, levels, scans by their names, time."""
    cases = report.cases
    levels = sum(c.result.levels for c in cases)
    found, named = sum(c.result.levels_found for c in cases), sum(c.result.levels_right for c in cases)
    whole, right = sum(c.all_right for c in cases), sum(c.found_right for c in cases)
    flagged = sum(c.flagged for c in cases if not c.found_right)
    shares = f"{100 * found / max(levels, 1):.0f} % | {100 * named / max(found, 1):.0f} %"
    mean = _figure(_mean(_mean(scores) for group in GROUPS if (scores := report.dice(2, group))), 2)
    scans = f"{whole} | {right} | {flagged} of {len(cases) - right}"
    return f"| {name} | {len(cases)} | {mean} | {levels} | {shares} | {scans} | {_figure(report.seconds(), 1)} |"


def _mean(values: Iterable[float]) -> float:
    """Return the mean; NaN for no values, without numpy's warning."""
    seen = list(values)
    return float(np.mean(seen)) if seen else math.nan


def _figure(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def is_flagged(result: pipeline.Segmentation, spacing: Sequence[float]) -> bool:
    """Return whether a reader is warned about the names, by the same rule for synthetic and real scans.

    Args:
        result: Result of the whole pipeline. Not modified.
        spacing: Voxel size of its labels, mm.

    Returns:
        True if the names are doubtful, or the linter finds levels that cannot be right.
    """
    unsure = result.numbering is not None and result.numbering.certainty == "doubtful"
    return unsure or any(finding.kind in LEVEL_FINDINGS for finding in lint(result.labels, spacing))


def score(
    spine: SyntheticSpine,
    image: NDArray[np.float32],
    step1: Predictor,
    step2: Predictor,
    view: str,
    contrast: str,
) -> SpineScore:
    """Run the whole pipeline on one image of 1 mm and compare it with the truth; a spine that is not found scores 0."""
    began = time.monotonic()
    scan = pipeline.prepare(Volume(image, spine.affine))
    truth1 = step1_classes(spine.labels)
    found1 = found2 = np.zeros(truth1.shape, np.uint8)
    result = None
    try:
        located = pipeline.locate(scan, step1)
        found1 = located.raw
        result = pipeline.finish(located, step2)
        found2 = scan.labels_to_input(result.labels)
    except NoSpineError:
        pass
    seconds = time.monotonic() - began
    flagged = result is None or is_flagged(result, scan.iso.spacing)
    dice1 = dice_by_group(truth1, found1, STEP1_REGIONS)
    return SpineScore(view, contrast, spine.column, dice1, score_case(spine.labels, found2), flagged, seconds)


def evaluate_starter(
    folder: Path,
    *,
    n: int = 12,
    seed: int = EVALUATION_SEED,
    device: str = "cpu",
    progress: Callable[[SpineScore], None] | None = None,
) -> Report:
    """Score the starter models on unseen synthetic spines, fields of view and contrasts in turn.

    Args:
        folder: The starter folder with both models.
        n: Number of spines.
        seed: The same seed gives the same spines.
        device: "cpu", "cuda" ..
        progress: Called after each case.

    Returns:
        The report.

    Raises:
        WeightsError: A model is missing or damaged.
    """
    step1 = WarmPredictor(ModelFolder.open(folder / STARTER_FOLDERS[1], step=1, name="starter"), device=device)
    step2 = WarmPredictor(ModelFolder.open(folder / STARTER_FOLDERS[2], step=2, name="starter"), device=device)
    for predictor in (step1, step2):
        predictor.warm_up()
    contrasts = ("T2", "T1", "STIR", "T2star")
    fields = tuple(Field)
    cases = []
    for number in range(n):
        rng = np.random.default_rng([seed, number])
        view, contrast = fields[number % len(fields)], contrasts[number % len(contrasts)]
        spine = random_spine(rng, SpineOptions(field=view, width_mm=WIDTH_MM, depth_mm=DEPTH_MM))
        image = render(rng, spine, RenderOptions(contrast=contrast, strength=0.7))
        cases.append(score(spine, image, step1, step2, view.value, contrast))
        if progress is not None:
            progress(cases[-1])
    return Report(tuple(cases))
