"""How well two models segment and name synthetic spines they have never seen."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lib import anatomy, pipeline
from lib.errors import NoSpineError
from lib.geometry import Volume
from lib.nnunet.model_folder import ModelFolder
from lib.nnunet.predictor import WarmPredictor
from lib.nnunet.starter_plans import STARTER_FOLDERS
from lib.numbering.lint import lint
from lib.prediction import Predictor
from lib.synthesis import Field, RenderOptions, SpineOptions, SyntheticSpine, random_spine, render, step1_classes

Codes = NDArray[np.uint8]

EVALUATION_SEED: Final = 1_000_003
"""Far from every training seed: these spines are unseen."""
FOUND_SHARE: Final = 0.3
"""A level counts as found when this much of it is labeled as some level of its kind; named right when most of that
carries its own name. How well the borders fit is the Dice's business."""
MIN_VOXELS: Final = 300
"""Structures cut to fewer voxels (1 mm) at the border of the scan are not counted, mm^3."""
WIDTH_MM, DEPTH_MM = 80.0, 200.0
"""Extent of the evaluated scans, that of a usual sagittal series; whole columns are as tall as they are."""
LEVEL_FINDINGS: Final = ("gap", "duplicate", "order", "disc_between", "reach")
"""What the linter says of names and levels; a loose fragment is a ragged border."""
GROUPS: Final[Mapping[str, tuple[int, ...]]] = {
    "vertebrae": anatomy.VERTEBRAE,
    "discs": anatomy.DISCS,
    "sacrum": (anatomy.SACRUM,),
    "canal": (anatomy.CANAL, anatomy.CORD),
    "cord": (anatomy.CORD,),
}


@dataclass(frozen=True)
class CaseScore:
    """One spine's score.

    Attributes:
        field: Part of the column in view.
        contrast: What it was rendered as.
        column: "normal" or its variant.
        step1: Dice by step-1 region.
        step2: Dice by group of the final result, names aside.
        levels: Vertebrae and discs in view.
        found: Of these, labeled as some level.
        named: Of the found ones, named right.
        flagged: See ``is_flagged``; a scan without a spine is.
        seconds: From the image to the named segmentation.
    """

    field: str
    contrast: str
    column: str
    step1: Mapping[str, float]
    step2: Mapping[str, float]
    levels: int
    found: int
    named: int
    flagged: bool
    seconds: float

    @property
    def found_right(self) -> bool:
        """Some level is found, and every found one is named right; others may be missing."""
        return self.named == self.found > 0

    @property
    def all_right(self) -> bool:
        """Every level in view is found and named right."""
        return self.named == self.found == self.levels > 0


@dataclass(frozen=True)
class Report:
    """Scores of all cases."""

    cases: tuple[CaseScore, ...] = field(default_factory=tuple)

    def mean(self, step: int, name: str) -> float:
        """Mean Dice of a region (step 1) or group (step 2) over the cases that show it; NaN when none does."""
        scores = ((c.step1 if step == 1 else c.step2).get(name) for c in self.cases)
        return _mean(s for s in scores if s is not None)

    def seconds(self, view: Field | None = None) -> float:
        """Mean time a scan, s, of one field of view or of all; NaN without such a scan."""
        return _mean(c.seconds for c in self.cases if view is None or c.field == view.value)

    def table(self) -> str:
        """The report as Markdown."""
        lines = ["| step | structure | mean Dice | cases |", "|---|---|---|---|"]
        for step, names in ((1, tuple(anatomy.STEP1_REGIONS)), (2, tuple(GROUPS))):
            for name in names:
                count = sum(name in (c.step1 if step == 1 else c.step2) for c in self.cases)
                lines.append(f"| {step} | {name} | {_figure(self.mean(step, name), 2)} | {count} |")
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
    """One part of the cases: mean Dice over the groups of the result, levels, scans by their names, time."""
    cases = report.cases
    levels, found, named = (sum(getattr(c, what) for c in cases) for what in ("levels", "found", "named"))
    whole, right = sum(c.all_right for c in cases), sum(c.found_right for c in cases)
    flagged = sum(c.flagged for c in cases if not c.found_right)
    shares = f"{100 * found / max(levels, 1):.0f} % | {100 * named / max(found, 1):.0f} %"
    mean = _figure(_mean(m for m in (report.mean(2, group) for group in GROUPS) if not math.isnan(m)), 2)
    scans = f"{whole} | {right} | {flagged} of {len(cases) - right}"
    return f"| {name} | {len(cases)} | {mean} | {levels} | {shares} | {scans} | {_figure(report.seconds(), 1)} |"


def _mean(values: Iterable[float]) -> float:
    """NaN of nothing, without numpy's warning."""
    seen = list(values)
    return float(np.mean(seen)) if seen else math.nan


def _figure(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Dice overlap of two masks; 1 when both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def region_dice(truth: Codes, found: Codes, groups: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """Dice by group of values, for the groups the truth shows with at least ``MIN_VOXELS``."""
    scores = {}
    for name, values in groups.items():
        mask = np.isin(truth, values)
        if int(mask.sum()) >= MIN_VOXELS:
            scores[name] = dice(mask, np.isin(found, values))
    return scores


def levels_in_view(truth: Codes, found: Codes) -> tuple[int, int, int]:
    """How many vertebrae and discs a scan shows, how many are found, and how many of those are named right.

    Args:
        truth: Output codes, uint8 (X, Y, Z).
        found: Output codes of a result on the same grid.

    Returns:
        Levels in view, found, named right; structures of fewer than ``MIN_VOXELS`` voxels are not counted.
    """
    levels = seen = named = 0
    for kind in (anatomy.VERTEBRAE, anatomy.DISCS):
        same_kind = np.isin(found, kind)
        for code in kind:
            mask = truth == code
            size = int(mask.sum())
            if size < MIN_VOXELS:
                continue
            levels += 1
            names = found[mask & same_kind]
            if names.size >= FOUND_SHARE * size:
                seen += 1
                named += 2 * int((names == code).sum()) > names.size
    return levels, seen, named


def is_flagged(result: pipeline.Segmentation, spacing: Sequence[float]) -> bool:
    """Whether a reader is told not to trust the names: the same for every scan, synthetic or real.

    Args:
        result: Of the whole pipeline. Not modified.
        spacing: Of its labels, mm.

    Returns:
        True when the chain model abstains, or the linter finds levels that cannot be right.
    """
    unsure = result.numbering is not None and not result.numbering.confident
    return unsure or any(finding.kind in LEVEL_FINDINGS for finding in lint(result.labels, spacing))


def score(
    spine: SyntheticSpine,
    image: NDArray[np.float32],
    step1: Predictor,
    step2: Predictor,
    view: str,
    contrast: str,
) -> CaseScore:
    """Run the whole pipeline on one image and compare it with the truth; a spine not found scores 0."""
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
    scores1 = region_dice(truth1, found1, anatomy.STEP1_REGIONS)
    scores2 = region_dice(spine.labels, found2, GROUPS)
    levels, seen, named = levels_in_view(spine.labels, found2)
    return CaseScore(view, contrast, spine.column, scores1, scores2, levels, seen, named, flagged, seconds)


def evaluate_starter(
    folder: Path,
    *,
    n: int = 12,
    seed: int = EVALUATION_SEED,
    device: str = "cpu",
    progress: Callable[[CaseScore], None] | None = None,
) -> Report:
    """Score the starter models on unseen synthetic spines, fields of view and contrasts in turn.

    Args:
        folder: The starter folder with both models.
        n: How many spines.
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
