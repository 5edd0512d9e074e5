"""Train the networks from scratch with nnU-Net, on the datasets that ``totalspineseg prepare`` wrote.

The command plans and preprocesses if this is needed, and then trains. You can interrupt it at any moment; the same
command continues. The datasets are in nnUNet/raw (or where nnU-Net's environment variables say), results in
nnUNet/results.
"""

import argparse
from pathlib import Path
from typing import Final

from totalspineseg_server.cli.common import positive
from totalspineseg_server.places import COMMAND

STEPS: Final = {"101": (1,), "102": (2,), "all": (1, 2)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "dataset", nargs="?", choices=tuple(STEPS), default="all", help="dataset to train on (default: both)"
    )
    parser.add_argument(
        "fold",
        nargs="?",
        choices=("0", "1", "2", "3", "4", "all"),
        default="0",
        metavar="FOLD",
        help="fifth of the subjects used for validation, 0 to 4 (default: 0), or all to train on every case",
    )
    parser.add_argument("--nnunet", type=Path, metavar="DIR", help="folder that holds raw, preprocessed and results")
    parser.add_argument(
        "--size",
        choices=("M", "L", "XL"),
        default="L",
        help="network for GPUs of about 11, 24 or 40 GB (default: L, as in TotalSpineSeg)",
    )
    parser.add_argument("--epochs", type=positive, default=1000, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--iterations", type=positive, default=250, metavar="N", help="iterations in an epoch (default: %(default)s)"
    )
    parser.add_argument(
        "--gpus", type=positive, default=1, metavar="N", help="number of GPUs that share the batch (default: 1)"
    )
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cuda", "cpu"),
        help="device to train on (default: a GPU if there is one)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of processes that prepare cases and batches; 0 for none",
    )
    parser.add_argument(
        "--restart", action="store_true", help="discard the plan and the training of this fold, and start over"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    from totalspineseg_server.nnunet.raw_folder import NnunetFolders
    from totalspineseg_server.training.scratch import ScratchSettings, train_from_scratch

    folders = NnunetFolders.at(arguments.nnunet)
    names = ("size", "epochs", "iterations", "gpus", "device", "workers")
    settings = ScratchSettings(**{name: getattr(arguments, name) for name in names})
    for step in STEPS[arguments.dataset]:
        model = train_from_scratch(
            folders,
            step,
            arguments.fold,
            settings,
            restart=arguments.restart,
            tell=lambda line: print(line, flush=True),
        )
        print(f"model of step {step}: {model}")
    print(f"to put them into use: {COMMAND} models import {folders.results}")
    return 0
