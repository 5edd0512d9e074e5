"""How long a random spine takes: drawn and rendered at 1 mm on one core, CPU seconds, by field of view.

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

from lib.synthesis import Field, SpineOptions, random_spine, render

SEED = 515
WIDTH_MM, DEPTH_MM = 80.0, 200.0
"""Extent of a usual sagittal series; as tall as its field."""


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spines", type=int, default=3, metavar="N", help="of each field")
    count = parser.parse_args().spines
    print("| field of view | million voxels | anatomy, s | image, s |\n|---|---|---|---|")
    for field in Field:
        drawn, rendered, voxels = [], [], []
        for number in range(count):
            rng = np.random.default_rng([SEED, number])
            start = time.process_time()
            spine = random_spine(rng, SpineOptions(field=field, width_mm=WIDTH_MM, depth_mm=DEPTH_MM))
            middle = time.process_time()
            render(rng, spine)
            drawn.append(middle - start)
            rendered.append(time.process_time() - middle)
            voxels.append(spine.labels.size / 1e6)
        print(f"| {field.value} | {np.mean(voxels):.1f} | {np.mean(drawn):.2f} | {np.mean(rendered):.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
