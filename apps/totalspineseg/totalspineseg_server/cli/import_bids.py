"""Import the labeled images of a BIDS data set, such as one of export-bids, as studies with finished labels.

The labels are used like those of local readers. Images that were imported before are left as they are.
"""

import argparse
import sys
from pathlib import Path

from totalspineseg_server.bids import LABEL_SUFFIX
from totalspineseg_server.cli.common import add_numbers_argument, existing_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("source", type=existing_path, metavar="SET", help="BIDS data set with labels")
    parser.add_argument("studies", type=Path, metavar="STUDIES", help="folder of studies; it is made if it is missing")
    parser.add_argument(
        "--label-suffix",
        default=LABEL_SUFFIX,
        metavar="S",
        help="labels are named IMAGE + S below derivatives/ (default: %(default)s, or the name of export-bids)",
    )
    add_numbers_argument(parser, "each label without a table dseg.tsv")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="the --work folder of the server of these studies")


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code: 1 if an image had to be left out."""
    from totalspineseg_server.exchange.received_set import import_set

    done = import_set(
        arguments.source,
        arguments.studies,
        suffix=arguments.label_suffix,
        numbers=arguments.numbers,
        work=arguments.work,
    )
    for name, reason in done.left_out.items():
        print(f"left out {name}: {reason}", file=sys.stderr)
    known = f", {len(done.known)} were there already" if done.known else ""
    print(f"imported {len(done.added)} images with finished labels into {arguments.studies}{known}")
    return 1 if done.left_out else 0
