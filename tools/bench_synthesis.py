"""Time random spines: made and rendered at 1 mm on one core, CPU seconds, by field of view.

python tools/bench_synthesis.py --spines 3
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps" / "totalspineseg"))

import numpy as np

from totalspineseg_server.synthesis import Field, SpineOptions, random_spine, render

SEED = 515
WIDTH_MM, DEPTH_MM = 80.0, 200.0
"""Extent of a usual sagittal series, as tall as its field."""
RANDOM_SPINES = 6
"""How many times as many spines with random fields and extents are drawn, because these differ more."""


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spines", type=int, default=3, metavar="N", help="spines of each field")
    count = parser.parse_args().spines
    print("| field of view | million voxels | anatomy, s | image, s |\n|---|---|---|---|")
    for field in Field:
        row(field.value, SpineOptions(field=field, width_mm=WIDTH_MM, depth_mm=DEPTH_MM), count)
    row("random, and its extent", SpineOptions(), RANDOM_SPINES * count)
    return 0


def row(name: str, options: SpineOptions, count: int) -> None:
    """Time ``count`` spines and print their means."""
    made, rendered, voxels = [], [], []
    for number in range(count):
        rng = np.random.default_rng([SEED, number])
        start = time.process_time()
        spine = random_spine(rng, options)
        middle = time.process_time()
        render(rng, spine)
        made.append(middle - start)
        rendered.append(time.process_time() - middle)
        voxels.append(spine.labels.size / 1e6)
    print(f"| {name} | {np.mean(voxels):.1f} | {np.mean(made):.2f} | {np.mean(rendered):.2f} |", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
