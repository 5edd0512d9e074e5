"""Learn from the corrections of a studies folder, without a server: train further, compare, and publish the version if
    it passes.

You can interrupt it at any moment; the next call with the same corrections and settings continues.
"""

import argparse
import sys
from pathlib import Path
from typing import Final

from totalspineseg_server.cli.common import MODEL_DIR, existing_path, positive
from totalspineseg_server.nnunet.finetune_settings import OPTIMIZERS

SETTINGS: Final = (
    "iterations",
    "batch_size",
    "learning_rate",
    "replay_share",
    "accepted_share",
    "replay_cases",
    "seed",
    "optimizer",
    "device",
)
"""Settings that clients know by the same names; ``resume`` is ``--restart`` here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "studies",
        type=existing_path,
        metavar="STUDIES",
        help="folder of the images that a server serves, or its work folder",
    )
    parser.add_argument("--step", type=int, choices=(1, 2), action="append", help="network to train (default: both)")
    parser.add_argument("--iterations", type=positive, metavar="N", help="iterations of each network (default: 500)")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="patches in a pass (default: 2)")
    parser.add_argument(
        "--learning-rate",
        type=float,
        metavar="RATE",
        help="peak of the learning rate (default: one that fits the size of the network's weights)",
    )
    parser.add_argument(
        "--replay-share",
        type=float,
        metavar="0..0.95",
        help="share of the patches from earlier and synthetic scans, which prevent forgetting (default: 0.5)",
    )
    parser.add_argument(
        "--accepted-share",
        type=float,
        metavar="0..0.5",
        help="share of the patches from results that readers accepted unchanged (default: 0.1)",
    )
    parser.add_argument(
        "--replay-cases", type=int, metavar="N", help="number of synthetic scans to mix in (default: 48)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of all random choices (default: 0)")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="optimizer; sgd is nnU-Net's own (default: adamw)")
    parser.add_argument(
        "--device", default="auto", metavar="cuda|cpu", help="device to train on (default: a GPU if there is one)"
    )
    parser.add_argument("--restart", action="store_true", help="delete an unfinished run instead of continuing it")
    parser.add_argument("--data-dir", type=Path, default=MODEL_DIR, metavar="DIR", help="model folder")


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code: 1 if the new version is not put into use."""
    from totalspineseg_server.registry.model_store import ModelStore
    from totalspineseg_server.training.retrain_settings import read_settings
    from totalspineseg_server.training.retraining import retrain
    from totalspineseg_server.training.site import site_of

    request = {name: getattr(arguments, name) for name in SETTINGS} | {"resume": not arguments.restart}
    steps = tuple(sorted(set(arguments.step or (1, 2))))
    site = site_of(arguments.studies, ModelStore(arguments.data_dir))
    result = retrain(site, read_settings(request, steps), show=lambda line: print(line, file=sys.stderr, flush=True))
    for case in result.skipped:
        print(f"left out {case.name}: {case.reason}")
    print(f"{result.version}: {result.message}")
    print(f"logs and curves: {result.run}")
    return 0 if result.served else 1
