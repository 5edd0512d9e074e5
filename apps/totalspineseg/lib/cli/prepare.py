"""Turn labeled scans (BIDS images with derivative labels, or a studies folder's corrections) into nnU-Net datasets.

Writes Dataset101 and Dataset102; what is there already is kept, so it can be called again.
Then: totalspineseg train
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lib.cli.common import existing_path

if TYPE_CHECKING:
    from lib.nnunet.cases import LabeledScan, ScanSource

SUBJECT: Final = re.compile(r"sub-[A-Za-z0-9]+")
DERIVATIVES: Final = "derivatives"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("source", type=existing_path, metavar="FOLDER", help="BIDS folder, or a folder of studies")
    parser.add_argument(
        "raw",
        type=Path,
        nargs="?",
        metavar="RAW",
        help="nnU-Net's raw folder to write into (default: what nnUNet_raw says, else nnUNet/raw)",
    )
    parser.add_argument("--step", type=int, choices=(1, 2), action="append", help="which dataset (default: both)")
    parser.add_argument(
        "--label-suffix",
        default="_label-spine_dseg",
        metavar="S",
        help="labels are named IMAGE + S below derivatives/ (default: %(default)s)",
    )
    parser.add_argument(
        "--no-o2e", action="store_true", help="dataset 102 without the second (odd/even swapped) copies"
    )
    parser.add_argument("--disturbed-share", type=float, default=0.5, metavar="0..1", help="cases with imperfect discs")


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 1 when a case had to be left out."""
    from lib.corrections.history import HISTORY_DIR
    from lib.errors import LabelError
    from lib.nnunet.cases import Skipped
    from lib.nnunet.folders import NnunetFolders
    from lib.nnunet.raw_dataset import RawOptions, dataset_name, write_raw_datasets

    skipped: list[Skipped] = []

    def skip(case: Skipped) -> None:
        skipped.append(case)
        print(f"left out {case.name}: {case.reason}", file=sys.stderr)

    site = (arguments.source / HISTORY_DIR).is_dir()
    sources = _corrections(arguments.source) if site else tuple(_bids(arguments.source, arguments.label_suffix))
    if not sources:
        raise LabelError(
            f"images with labels named IMAGE{arguments.label_suffix}.nii.gz below {DERIVATIVES}/ are required, got "
            f"none in {str(arguments.source)!r}; check --label-suffix"
        )
    steps = tuple(sorted(set(arguments.step or (1, 2))))
    options = RawOptions(steps, not arguments.no_o2e, arguments.disturbed_share)
    raw = arguments.raw or NnunetFolders.at().raw
    for step, count in write_raw_datasets(sources, raw, options, on_skip=skip).items():
        print(f"{raw / dataset_name(step)}: {count} cases")
    return 1 if skipped else 0


def _corrections(studies: Path) -> "tuple[ScanSource, ...]":
    from lib.cli.common import MODEL_DIR
    from lib.registry.store import ModelStore
    from lib.trainers.material import site_material
    from lib.trainers.site import folder_site

    return site_material(folder_site(studies, ModelStore(MODEL_DIR))).training


def _bids(folder: Path, suffix: str) -> "Iterator[ScanSource]":
    """Every image below ``sub-*`` that has a label of its name plus ``suffix`` below ``derivatives``."""
    from lib.nnunet.cases import Origin, ScanSource

    labels = {path.name: path for path in sorted((folder / DERIVATIVES).rglob(f"*{suffix}.nii.gz"))}
    for image in sorted(folder.glob("sub-*/**/*.nii.gz")):
        name = image.name.removesuffix(".nii.gz")
        label = labels.get(f"{name}{suffix}.nii.gz")
        if label is not None:
            yield ScanSource(name, Origin.EARLIER, lambda i=image, b=label, n=name: _read(n, i, b))  # type: ignore[misc]


def _read(name: str, image: Path, label: Path) -> "LabeledScan":
    from lib.nnunet.cases import LabeledScan, Origin
    from lib.volume_io import read_image, read_labels

    subject = SUBJECT.search(name)
    return LabeledScan(name, subject[0] if subject else name, Origin.EARLIER, read_image(image), read_labels(label))
