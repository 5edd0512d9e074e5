"""The fixed reference set: the same synthetic scans for every candidate, never trained on."""

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from lib.agreement import GROUPS, LEVELS
from lib.gate.scoring import JudgedCase
from lib.geometry import Volume
from lib.synthesis import Field, RenderOptions, SpineOptions, random_spine, render

SEED: Final = 40_417
"""First part of every reference scan's seed; no other synthetic set of the project uses it."""
FIELDS: Final = (Field.LUMBAR, Field.CERVICOTHORACIC, Field.THORACOLUMBAR, Field.CERVICAL, Field.LUMBAR, Field.WHOLE)
CONTRASTS: Final = ("T2", "T1", "T2", "T2", "STIR", "T1")
WIDTH_MM: Final = 70.0
"""Narrow, as sagittal spine scans are."""

HANDLED: Final = 0.5
"""Weights that reach less on a synthetic spine, in mean Dice or the share of rightly named levels, do not handle it.
Those trained on such spines reach 0.8 and more; what is not handled says nothing of what could be forgotten."""


def handles(values: Mapping[str, float]) -> bool:
    """Whether weights handle a synthetic spine.

    Args:
        values: Measure -> value they reach; nan where it does not apply.
    """
    dice = [values[group] for group in GROUPS if not np.isnan(values[group])]
    return bool(dice) and float(np.mean(dice)) >= HANDLED and not values[LEVELS] < HANDLED


def reference_cases(count: int, *, spacing_mm: float = 1.0) -> Iterator[JudgedCase]:
    """The reference set, drawn when needed.

    Args:
        count: How many scans; the first ones are the same for every count.
        spacing_mm: Voxel size.

    Yields:
        Scans with their truth, each a subject of its own.
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
