"""Train the small starter networks on synthetic spines and, if you have them, labeled scans of people.

You can interrupt it at any moment; the same command continues.

In every second patch of step 2, the marked discs are those that step 1 finds: the step 1 in --out, or, if there is
none, the one in --start-from.
"""

import argparse
import logging
from dataclasses import fields
from pathlib import Path

from totalspineseg_server.cli.common import MODEL_DIR, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--step", type=int, choices=(1, 2), action="append", help="network to train (default: both)")
    parser.add_argument("--out", type=Path, default=MODEL_DIR / "starter", metavar="FOLDER", help="starter folder")
    parser.add_argument(
        "--iterations", type=positive, default=3000, metavar="N", help="iterations of each network (default: 3000)"
    )
    parser.add_argument("--minutes", type=float, metavar="M", help="end after this much training time for each network")
    parser.add_argument(
        "--piece-minutes",
        type=float,
        metavar="M",
        help="pause each training after this time; call again to continue (both steps: twice as long)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all random choices (default: 0)")
    parser.add_argument("--device", default="cpu", metavar="cuda|cpu", help="device to train on (default: cpu)")
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="number of CPU threads (default: 1)")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="number of processes that draw spines; a GPU needs many"
    )
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N", help="patches in a pass (default: 1)")
    parser.add_argument("--learning-rate", type=float, metavar="R", help="learning rate at the start")
    parser.add_argument("--early-phase", type=float, metavar="SHARE", help="share of the training on small patches")
    parser.add_argument(
        "--start-from", type=Path, metavar="FOLDER", help="starter folder with the weights to begin with"
    )
    parser.add_argument("--real", type=Path, metavar="FOLDER", help="training cases of people (tools/spider_cases.py)")
    parser.add_argument(
        "--real-share", type=float, metavar="SHARE", help="share of the patches taken from them (default: 0.35)"
    )
    parser.add_argument(
        "--outlines-only",
        action="store_true",
        help="change only the two finest resolutions, so that levels are distinguished as before",
    )
    parser.add_argument("--restart", action="store_true", help="discard an unfinished training, and start over")


def execute(arguments: argparse.Namespace) -> int:
    """Run the training; return the exit code."""
    from totalspineseg_server.nnunet.real_spines import read_cases
    from totalspineseg_server.nnunet.starter import train_starter
    from totalspineseg_server.nnunet.starter_plans import STARTER_FOLDERS, StarterSettings

    logging.getLogger().setLevel(logging.INFO)
    values = {f.name: getattr(arguments, f.name, None) for f in fields(StarterSettings)}
    settings = StarterSettings(**{name: value for name, value in values.items() if value is not None})
    source = arguments.start_from
    real = read_cases(arguments.real) if arguments.real is not None else ()
    for step in sorted(set(arguments.step or (1, 2))):
        start = source / STARTER_FOLDERS[step] if source is not None else None
        finder = _finder(arguments.out, source) if step == 2 else None
        folder = train_starter(
            step, arguments.out, settings, resume=not arguments.restart, start_from=start, discs_by=finder, real=real
        )
        print(f"step {step}: {folder}")
    return 0


def _finder(out: Path, source: Path | None) -> Path | None:
    """Return the step-1 model that finds the discs for step 2: the one in ``out``, or else the one from which training
    begins."""
    from totalspineseg_server.nnunet.starter_plans import CHECKPOINT, STARTER_FOLDERS

    models = [folder / STARTER_FOLDERS[1] for folder in (out, source) if folder is not None]
    found = next((model for model in models if (model / CHECKPOINT).is_file()), None)
    if found is None:
        where = " and ".join(map(repr, map(str, models)))
        print(f"step 2: no step-1 model in {where}; all errors of its marked discs are simulated")
    else:
        print(f"step 2: every second patch is marked with the discs that {found} finds")
    return found
