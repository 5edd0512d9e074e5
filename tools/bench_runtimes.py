"""Time one tile in PyTorch and in OpenVINO alternately, so that other work on the machine affects both alike.

    .venv/bin/python tools/bench_runtimes.py [--threads 2] [--turns 5] [--side 128]

Networks: the starter weights, and one with the shape of the official networks (residual encoder, 128^3 voxels) and
random weights; --side 64 takes an eighth of the time, --side 0 leaves it out. CPU seconds count only computation, wall
seconds also waiting.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import local_server
import torch
from bench_official import official_shape

from totalspineseg_server.files import copy_file
from totalspineseg_server.nnunet.discovery import STEP_CHANNELS
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.openvino_network import load_openvino
from totalspineseg_server.processes import unwind_on_signals

SIDE = 128
"""Side of the tile, voxels at 1 mm."""


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--side", type=int, default=SIDE, help="tile of the official shape, voxels; 0: leave it out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, {arguments.turns} turns; medians of one tile, seconds (CPU seconds)")
    print(f"{'network':<22}{'PyTorch':>16}{'OpenVINO':>16}{'ratio':>14}{'other signs':>13}{'convert':>9}{'load':>7}")
    starter = local_server.APP / "model" / "starter"
    with tempfile.TemporaryDirectory() as name:
        for step in (1, 2):
            compare(f"starter, step {step}", ModelFolder.open(starter, step=step), Path(name), arguments.turns)
        if arguments.side:
            large = official_shape(Path(name) / "large", ModelFolder.open(starter, step=1), [arguments.side] * 3)
            compare(f"official shape, {arguments.side}^3", large, Path(name), arguments.turns)
    return 0


def compare(name: str, model: ModelFolder, folder: Path, rounds: int) -> None:
    """Print one line of the table."""
    # Use a copy, so that the conversion is measured whatever is beside the weights.
    own = copy_of(model, folder / name.replace(" ", "-"))
    network = own.load_network()
    start = time.perf_counter()
    converted = load_openvino(own)
    converting = time.perf_counter() - start
    start = time.perf_counter()
    converted = load_openvino(own)
    loading = time.perf_counter() - start
    tile = torch.randn(1, STEP_CHANNELS[own.step], *own.patch, generator=torch.Generator().manual_seed(1))
    rows: dict[str, list[tuple[float, float]]] = {"torch": [], "openvino": []}
    with torch.inference_mode():
        different = float(((network(tile) > 0) != (converted(tile) > 0)).float().mean())
        for _ in range(rounds):
            rows["torch"].append(timed(lambda: network(tile)))
            rows["openvino"].append(timed(lambda: converted(tile)))
    (wall, cpu), (faster, less) = (
        [statistics.median(row[k] for row in measured) for k in (0, 1)] for measured in rows.values()
    )
    ratio = f"{wall / faster:.1f} ({cpu / less:.1f})"
    print(f"{name:<22}{f'{wall:.2f} ({cpu:.2f})':>16}{f'{faster:.2f} ({less:.2f})':>16}{ratio:>14}", end="")
    print(f"{different:>13.5%}{converting:>9.1f}{loading:>7.1f}")


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Return wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def copy_of(model: ModelFolder, folder: Path) -> ModelFolder:
    """Copy a model without the files that are kept beside it."""
    checkpoint = folder / model.checkpoint.relative_to(model.path)
    checkpoint.parent.mkdir(parents=True)
    for file in ("plans.json", "dataset.json"):
        copy_file(model.path / file, folder / file)
    copy_file(model.checkpoint, checkpoint)
    return ModelFolder.open(folder, step=model.step)


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
