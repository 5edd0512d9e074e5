"""Make the fixed reference set: the same synthetic scans for every candidate, never used for training."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from math import nan
from typing import Final

import numpy as np

from totalspineseg_server.agreement import GROUPS, LEVELS, MEASURES, CaseScore
from totalspineseg_server.geometry import Volume
from totalspineseg_server.synthesis import Field, RenderOptions, SpineOptions, random_spine, render
from totalspineseg_server.training.compare import SubjectScores
from totalspineseg_server.training.scoring import JudgedCase

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
