"""Make synthetic scans that keep a fine-tuned network from forgetting what it learned first."""

from typing import Final

import numpy as np

from lib.geometry import Volume
from lib.nnunet.cases import LabeledScan, Origin, ScanSource
from lib.synthesis import Field, RenderOptions, SpineOptions, random_spine, render
from lib.trainers.settings import REPLAY_CASES

SEED: Final = 71_993
"""First part of every replay scan's seed; the reference set of the gate uses another."""
FIELDS: Final = (Field.LUMBAR, Field.CERVICOTHORACIC, Field.THORACOLUMBAR, Field.CERVICAL)


def replay_sources(count: int = REPLAY_CASES) -> tuple[ScanSource, ...]:
    """Return the synthetic replay scans, made when they are read; the first ones are the same for every count."""
    return tuple(_source(number) for number in range(count))


def _source(number: int) -> ScanSource:
    name = f"synthetic-{number + 1}"
    return ScanSource(
        name, Origin.UNCORRECTED, lambda: _draw(number, name), {"synthetic": name, "seed": [SEED, number]}
    )


def _draw(number: int, name: str) -> LabeledScan:
    rng = np.random.default_rng([SEED, number])
    options = SpineOptions(field=FIELDS[number % len(FIELDS)], width_mm=float(rng.uniform(60, 90)))
    spine = random_spine(rng, options)
    image = render(rng, spine, RenderOptions(strength=float(rng.uniform(0.3, 1.0))))
    return LabeledScan(name, name, Origin.UNCORRECTED, Volume(image, spine.affine), Volume(spine.labels, spine.affine))
