"""What share of a warm request networks of the official shape take on this machine.

    .venv/bin/python tools/bench_official.py [--scans 1] [--threads 2] [--runtime openvino]

Networks of the official shape (residual encoder, tile of 128^3 voxels at 1 mm) with random weights compute every scan
in full, tiles, sums and labels; what goes on to the next stage are the starter networks' labels, whose time is taken
off the request.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from bench_request import ForwardClock, serve
from bench_runtimes import SIDE, official_shape
from local_server import APP

from lib.geometry import FloatArray
from lib.nnunet.model_folder import ModelFolder
from lib.nnunet.predictor import WarmPredictor
from lib.nnunet.runtimes import RUNTIMES
from lib.prediction import Prediction
from lib.processes import unwind_on_signals
from lib.synthesis import demo_studies

SEED = 11


class Both:
    """The work of the one network, the labels of the other.

    Args:
        work: Of the official shape.
        labels: The starter network of the same step.
    """

    def __init__(self, work: WarmPredictor, labels: WarmPredictor) -> None:
        self.work, self.labels, self.version = work, labels, work.version
        self.clock, self.extra_s = ForwardClock(), 0.0
        self.clock.attach(work._network)

    def predict(self, channels: FloatArray, *, soft: Collection[str] = ()) -> Prediction:
        """Labels and soft maps of the starter network, after all of the other's work."""
        self.work.predict(channels, soft=soft)
        start = time.perf_counter()
        prediction = self.labels.predict(channels, soft=soft)
        self.extra_s += time.perf_counter() - start
        return prediction


def spent(steps: Sequence[Both]) -> tuple[float, float]:
    """Seconds so far of the forward passes, and of the starter networks."""
    return sum(both.clock.seconds for both in steps), sum(both.extra_s for both in steps)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=1, help="synthetic scans: lumbar, cervicothoracic, whole ..")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", type=int, default=SIDE, help="tile, voxels")
    parser.add_argument("--runtime", choices=RUNTIMES, default="torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    starter = APP / "model" / "starter"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = []
        for step in (1, 2):
            small = ModelFolder.open(starter, step=step)
            large = official_shape(folder / f"step{step}", small, arguments.side)
            work, labels = (WarmPredictor(model, device="cpu", runtime=arguments.runtime) for model in (large, small))
            steps.append(Both(work, labels))
        for scan in demo_studies(folder / "in", arguments.scans, SEED):
            forward, extra = spent(steps)
            start = time.perf_counter()
            serve(scan, steps[0], steps[1], folder / "labels.nrrd")
            seconds = time.perf_counter() - start
            forward, extra = (now - then for now, then in zip(spent(steps), (forward, extra), strict=True))
            request = seconds - extra
            print(f"{scan.name}: request {request:.1f} s, forward passes {forward:.1f} s, {forward / request:.0%}")
    return 0


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
