"""Give silent output channels of the starter weights a second life, then train on.

An early form of the loss drove the channels of rare landmarks (C2-C3, C7-T1, T12-L1, C1) so far down that no gradient
came back. This is the second stage of the shipped weights: it draws those rows of the segmentation heads anew, keeps
everything else, and goes on with a higher rate and spines reused more often, because its time was short.

    python tools/revive_starter.py --step 1 --out FOLDER --minutes 26.5
"""

import argparse
import logging
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "apps" / "totalspineseg"))

from lib.nnunet import starter, starter_batches  # noqa: E402
from lib.nnunet.starter_model import write_checkpoint  # noqa: E402
from lib.nnunet.starter_plans import STARTER_FOLDERS, regions_of  # noqa: E402

SHIPPED = ROOT / "apps" / "totalspineseg" / "model" / "starter"
SILENT = ("disc_C2_C3", "disc_C7_T1", "disc_T12_L1", "vertebrae_C1")
BIAS = -3.0
"""Logit of a rare structure before anything is known: 5 %."""
SPREAD = 0.05
"""Standard deviation of the new weights, as of the other rows."""


def revived(weights: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
    """The weights with the silent rows of every segmentation head drawn anew."""
    generator = torch.Generator().manual_seed(0)
    rows = [row for row, name in enumerate(regions_of(step)) if name in SILENT]
    result = {name: value.float().clone() for name, value in weights.items()}
    for name, value in result.items():
        for row in rows if "seg_layers" in name else []:
            fresh = torch.randn(value[row].shape, generator=generator) * SPREAD
            value[row] = torch.full_like(value[row], BIAS) if name.endswith("bias") else fresh
    return result


def begin(step: int, source: Path, target: Path) -> None:
    """Write the state that training goes on from, unless there is one."""
    latest = target / STARTER_FOLDERS[step] / "fold_0" / "checkpoint_latest.pth"
    if latest.exists():
        return
    latest.parent.mkdir(parents=True, exist_ok=True)
    final = source / STARTER_FOLDERS[step] / "fold_0" / "checkpoint_final.pth"
    weights = revived(torch.load(final, weights_only=True)["network_weights"], step)
    state = starter._Run(step, starter.FEATURES, torch.device("cpu")).state()
    write_checkpoint(latest, {**state, "network": weights, "mean": weights})


def main() -> int:
    """Revive one step and train it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=int, choices=(1, 2), required=True)
    parser.add_argument("--source", type=Path, default=SHIPPED, help="starter folder to begin from")
    parser.add_argument("--out", type=Path, required=True, help="starter folder to write")
    parser.add_argument("--minutes", type=float, required=True, help="training time in all")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    begin(arguments.step, arguments.source, arguments.out)
    # What this stage did differently from a training anew.
    starter.LEARNING_RATE, starter.WARM_UP, starter.EMA_DECAY, starter.EARLY_PHASE = 1e-3, 20, 0.985, 0.38
    starter_batches.USES_PER_SPINE = 25
    starter.train_starter(
        arguments.step,
        arguments.out,
        iterations=20000,
        seed=300 + arguments.step,
        minutes=arguments.minutes,
        pool_size=6,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
