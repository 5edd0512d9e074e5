"""Turn labeled scans (BIDS images with derivative labels, or a studies folder's corrections) into nnU-Net datasets.

Dataset101 and Dataset102 then hold exactly these cases. You can interrupt it at any moment; the same command
continues. The next command is totalspineseg train. It is best to prepare step 2 once step 1 is trained: --step 2
--discs-by nnUNet/results
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from totalspineseg_server.anatomy import OWN_NUMBERS
from totalspineseg_server.bids import DERIVATIVES, LABEL_SUFFIX, subject_of
from totalspineseg_server.cli import cli_messages
from totalspineseg_server.cli.common import add_numbers_argument, existing_path, model_store

if TYPE_CHECKING:
    from totalspineseg_server.exchange.labeled_pairs import Pair
    from totalspineseg_server.nnunet.cases import LabeledScan, ScanSource, Skipped
    from totalspineseg_server.prediction import Predictor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("source", type=existing_path, metavar="FOLDER", help="BIDS folder, or a folder of studies")
    parser.add_argument(
        "raw",
        type=Path,
        nargs="?",
        metavar="RAW",
        help="nnU-Net's raw folder to write into (default: the value of nnUNet_raw, else nnUNet/raw)",
    )
    parser.add_argument("--step", type=int, choices=(1, 2), action="append", help="dataset to prepare (default: both)")
    parser.add_argument(
        "--label-suffix",
        default=LABEL_SUFFIX,
        metavar="S",
        help="labels are named IMAGE + S below derivatives/ (default: %(default)s, or the name of export-bids)",
    )
    add_numbers_argument(parser, "each label of a BIDS folder")
    parser.add_argument(
        "--no-o2e", action="store_true", help="make dataset 102 without the second (odd/even swapped) copies"
    )
    parser.add_argument(
        "--disturbed-share", type=_share, metavar="0..1", help="share of the cases with imperfect discs"
    )
    parser.add_argument(
        "--discs-by",
        metavar="NAME",
        help="step-1 network whose own discs are used in two thirds of the imperfect cases: starter, official, an "
        "installed version, or a folder such as nnU-Net's results (default: all errors are simulated)",
    )
    parser.add_argument(
        "--device", default="auto", metavar="cuda|cpu", help="device of that network (default: a GPU if there is one)"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code: 1 if a case had to be left out."""
    from totalspineseg_server.errors import LabelError
    from totalspineseg_server.nnunet.cases import Skipped
    from totalspineseg_server.nnunet.raw_dataset import DISTURBED_SHARE, RawOptions, write_raw_datasets
    from totalspineseg_server.nnunet.raw_folder import NnunetFolders, read_cases
    from totalspineseg_server.registry.model_store import dataset_name
    from totalspineseg_server.training.site import has_corrections

    steps = tuple(sorted(set(arguments.step or (1, 2))))
    disturbed = DISTURBED_SHARE if arguments.disturbed_share is None else arguments.disturbed_share
    if arguments.discs_by is not None and (2 not in steps or not disturbed):
        raise argparse.ArgumentTypeError(
            "--discs-by needs step 2 and a --disturbed-share above 0, got step "
            f"{' and '.join(map(str, steps))} and a share of {disturbed:g}"
        )
    finder = None if arguments.discs_by is None else _finder(arguments.discs_by, arguments.device)
    options = RawOptions(steps, not arguments.no_o2e, disturbed, finder)
    skipped: list[Skipped] = []

    def skip(case: Skipped) -> None:
        skipped.append(case)
        print(f"left out {case.name}: {case.reason}", file=sys.stderr)

    if has_corrections(arguments.source):
        required, remedy = cli_messages.NO_CORRECTIONS, cli_messages.SUBMIT_FIRST
    else:
        required = cli_messages.NO_LABELED_IMAGES.format(suffix=arguments.label_suffix, derivatives=DERIVATIVES)
        remedy = cli_messages.CHECK_SUFFIX
    sources, unusable = labeled_scans(arguments.source, arguments.label_suffix, arguments.numbers)
    for case in unusable:
        skip(case)
    if not sources:
        raise LabelError(
            cli_messages.NOTHING_TO_PREPARE.format(required=required, folder=str(arguments.source), remedy=remedy)
        )
    raw = arguments.raw or NnunetFolders.at().raw
    for step, written in write_raw_datasets(sources, raw, options, on_skip=skip).items():
        print(f"{raw / dataset_name(step)}: {written.cases} cases")
        channels = Counter(case["discs"] for case in read_cases(raw / dataset_name(step)).values() if "discs" in case)
        if channels:
            print(f"discs of the second channel: {', '.join(f'{n} {discs}' for discs, n in channels.most_common())}")
        if written.removed:
            print(f"removed {len(written.removed)} cases of an earlier run: {', '.join(written.removed)}")
    return 1 if skipped else 0


def labeled_scans(
    folder: Path, suffix: str, numbers: str = OWN_NUMBERS
) -> "tuple[tuple[ScanSource, ...], tuple[Skipped, ...]]":
    """Return the labeled scans of a BIDS folder (or the finished corrections of a site), and those that cannot be used.

    Files of a BIDS folder that have an unsupported format are named on stderr.

    Args:
        folder: The folder.
        suffix: Ending of the names of a BIDS folder's labels.
        numbers: The numbers in a BIDS folder's labels (see ``read_codes``).
    """
    from totalspineseg_server.io.volumes import is_other_name, not_read_sentence
    from totalspineseg_server.training.site import has_corrections

    if has_corrections(folder):
        return _corrections(folder)
    places = (path for pattern in ("sub-*/**/*", f"{DERIVATIVES}/**/*") for path in folder.glob(pattern))
    if skipped := not_read_sentence({path.relative_to(folder).as_posix() for path in places if is_other_name(path)}):
        print(skipped, file=sys.stderr)
    return tuple(_bids(folder, suffix, numbers)), ()


def _finder(name: str, device: str) -> "Predictor":
    from totalspineseg_server.nnunet.model_folder import ModelFolder
    from totalspineseg_server.nnunet.predictor import WarmPredictor
    from totalspineseg_server.nnunet.runtimes import require

    require(device, "torch")
    choice = model_store(None, name).resolve(1)
    return WarmPredictor(ModelFolder.open(choice.root, step=1, name=choice.name), device=device)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def _corrections(studies: Path) -> "tuple[tuple[ScanSource, ...], tuple[Skipped, ...]]":
    from totalspineseg_server.cli.common import MODEL_DIR
    from totalspineseg_server.registry.model_store import ModelStore
    from totalspineseg_server.training.material import site_material
    from totalspineseg_server.training.site import site_of

    material = site_material(site_of(studies, ModelStore(MODEL_DIR)))
    return material.training, material.skipped


def _bids(folder: Path, suffix: str, numbers: str) -> "Iterator[ScanSource]":
    """Yield the labeled images of a BIDS folder."""
    from totalspineseg_server.exchange.labeled_pairs import labeled_pairs
    from totalspineseg_server.nnunet.cases import Origin, ScanSource

    for pair in labeled_pairs(folder, suffix):
        yield ScanSource(pair.name, Origin.EARLIER, lambda p=pair: _read(p, numbers))  # type: ignore[misc]


def _read(pair: "Pair", numbers: str) -> "LabeledScan":
    from totalspineseg_server.exchange.labeled_pairs import read_pair_label
    from totalspineseg_server.io.volumes import read_image
    from totalspineseg_server.nnunet.cases import LabeledScan, Origin

    image, label = pair.require_one()
    codes = read_pair_label(label, pair.root, numbers)
    return LabeledScan(pair.name, subject_of(pair.name), Origin.EARLIER, read_image(image), codes)
