"""Train the small starter networks on synthetic spines; may be stopped at any moment and called again."""

import argparse
import logging
from pathlib import Path

from lib.cli.common import MODEL_DIR, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--step", type=int, choices=(1, 2), action="append", help="which network (default: both)")
    parser.add_argument("--out", type=Path, default=MODEL_DIR / "starter", metavar="FOLDER", help="starter folder")
    parser.add_argument("--iterations", type=positive, default=3000, metavar="N")
    parser.add_argument("--minutes", type=float, metavar="M", help="end after this much training time per network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", metavar="cuda|cpu")
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="CPU threads")
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N")
    parser.add_argument("--start-from", type=Path, metavar="FOLDER", help="step-1 model that step 2 begins with")
    parser.add_argument("--restart", action="store_true", help="forget what an earlier call left")


def execute(arguments: argparse.Namespace) -> int:
    """Run the training; returns the exit code."""
    from lib.nnunet.starter import train_starter

    logging.getLogger().setLevel(logging.INFO)
    for step in sorted(set(arguments.step or (1, 2))):
        folder = train_starter(
            step,
            arguments.out,
            iterations=arguments.iterations,
            seed=arguments.seed,
            device=arguments.device,
            threads=arguments.threads,
            resume=not arguments.restart,
            minutes=arguments.minutes,
            batch_size=arguments.batch_size,
            start_from=arguments.start_from if step > 1 else None,
        )
        print(f"step {step}: {folder}")
    return 0
