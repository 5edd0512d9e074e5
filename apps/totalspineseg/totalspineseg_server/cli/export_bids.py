"""Export finished labels with their images as a BIDS data set, for sharing or for training elsewhere.

Names, dates and identifiers of patients and readers are left out, and subjects get pseudonyms, the same at every
export of a site. The pictures stay as they are: text burned into them and the face in an image of the neck remain.
"""

import argparse
import sys
from pathlib import Path

from totalspineseg_server.cli.common import MODEL_DIR, existing_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "studies", type=existing_path, metavar="STUDIES", help="folder of studies, or the --work folder of a server"
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to write; it must be missing or empty")
    parser.add_argument(
        "--contrast",
        default="T2w",
        choices=("T1w", "T2w", "PDw", "FLAIR", "T2star"),
        help="contrast of images whose names have none (default: %(default)s)",
    )


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code: 1 if a label had to be left out."""
    from totalspineseg_server.exchange.shared_set import export_set
    from totalspineseg_server.registry.model_store import ModelStore
    from totalspineseg_server.training.site import site_of

    site = site_of(arguments.studies, ModelStore(MODEL_DIR))
    done = export_set(site, arguments.output, contrast=arguments.contrast)
    for image, reason in done.left_out.items():
        print(f"left out {image}: {reason}", file=sys.stderr)
    print(f"wrote {done.images} images of {done.subjects} subjects with their labels to {arguments.output}")
    if done.faces:
        print(f"{done.faces} of them show the neck, where the face may be in view: look at them before you share them")
    print(f"the key of the pseudonyms stays here: {site.history / 'pseudonyms.key'}")
    return 1 if done.left_out else 0
