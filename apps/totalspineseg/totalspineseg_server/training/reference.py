"""Make the fixed reference set: the same synthetic scans for every candidate, never used for training."""

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from totalspineseg_server.agreement import GROUPS, LEVELS
from totalspineseg_server.geometry import Volume
from totalspineseg_server.synthesis import Field, RenderOptions, SpineOptions, random_spine, render
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
forgot."""


def handles(values: Mapping[str, float]) -> bool:
    """Return whether weights handle a synthetic spine, given their scores on it.

    Args:
        values: Measure -> value that the weights reach; nan where it does not apply. Not modified.
    """
    dice = [values[group] for group in GROUPS if not np.isnan(values[group])]
    return bool(dice) and float(np.mean(dice)) >= HANDLED and not values[LEVELS] < HANDLED


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
