"""Share argument types and the model store between commands."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from totalspineseg_server import places
from totalspineseg_server.anatomy import NUMBER_TABLES, OWN_NUMBERS
from totalspineseg_server.cli import cli_messages

if TYPE_CHECKING:
    from totalspineseg_server.numbering.evidence import Pin
    from totalspineseg_server.registry.model_store import ModelStore

MODEL_DIR: Final = places.model_dir()
"""Folder of this installation's models."""
MIB: Final = 1 << 20
"""Bytes in a mebibyte."""
PIN_UNMET: Final = "pin_unmet"
"""Kind of the finding about a pin that meets no structure; users of the command line must see it at once."""


def existing_path(text: str) -> Path:
    """Return the path that an argument names; it must exist."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{text!r} does not exist")
    return path


def positive(text: str) -> int:
    """Return a whole number above 0."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return value


def pin_text(text: str) -> tuple[int, tuple[float, float, float]]:
    """Return a level's code and a point in it, RAS mm, from ``NAME@x,y,z``."""
    from totalspineseg_server.segments import level_at

    found = level_at(text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"expected a level and a point in it, such as L5@3.5,-12,80 (patient coordinates, RAS mm), got {text!r}"
        )
    return found


def pins_of(arguments: argparse.Namespace) -> "tuple[Pin, ...]":
    """Return the pins of the ``--pin`` options."""
    from totalspineseg_server.numbering.evidence import Pin

    return tuple(Pin(code, point) for code, point in arguments.pin)


def print_unmet_pins(name: str, report: Mapping[str, Any]) -> None:
    """Print to stderr which pins meet no structure.

    Args:
        name: Name of the scan.
        report: Report on its levels, with its findings.
    """
    for finding in report["findings"]:
        if finding["kind"] == PIN_UNMET:
            print(f"{name}: {finding['message']}", file=sys.stderr)


def add_numbering_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--method`` and ``--pin``, which ``run`` and ``label`` share."""
    parser.add_argument(
        "--method",
        choices=("chain", "iterative"),
        default="chain",
        help="method that names the levels: chain weighs all evidence and reports how certain it is (default), "
        "iterative follows TotalSpineSeg's own rule",
    )
    parser.add_argument(
        "--pin",
        action="append",
        default=[],
        type=pin_text,
        metavar="NAME@x,y,z",
        help="pin a level: its name and a point in it in patient coordinates (RAS mm), such as L5@3.5,-12,80; may "
        "be repeated",
    )


def add_numbers_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--numbers``.

    Args:
        parser: The command's parser.
        what: The maps whose numbers it names.
    """
    parser.add_argument(
        "--numbers",
        choices=(OWN_NUMBERS, *NUMBER_TABLES),
        default=OWN_NUMBERS,
        help=f"program whose numbers {what} uses: totalsegmentator (task total), totalsegmentator-mr (task "
        "vertebrae_mr), spineps (vertebra mask) or verse (default: %(default)s)",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--data-dir`` and ``--weights``."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="folder of the models: this project's model folder, or one that holds the nnU-Net folders "
        "Dataset101_.. and Dataset102_.. (default: the app's own)",
    )
    parser.add_argument(
        "--weights",
        default="",
        metavar="NAME",
        help="weights to use: starter, official, an installed version, or a folder (default: those in use)",
    )


def model_store(data_dir: Path | None, weights: str) -> "ModelStore":
    """Return the models of ``--data-dir`` and ``--weights``.

    Raises:
        WeightsError: The folder does not exist.
    """
    from totalspineseg_server.errors import WeightsError
    from totalspineseg_server.registry.model_store import STARTER, ModelStore

    if data_dir is None:
        return ModelStore(MODEL_DIR, weights=weights)
    if not data_dir.is_dir():
        raise WeightsError(cli_messages.NO_DATA_DIR.format(folder=str(data_dir)))
    store = ModelStore(data_dir, weights=weights)
    ours = store.pointer.exists() or store.versions_dir.is_dir() or (data_dir / STARTER).is_dir()
    if weights or ours:
        return store
    # The models may be deeper: users of TotalSpineSeg have them in DIR/nnUNet/results.
    return ModelStore(MODEL_DIR, weights=str(data_dir.resolve()))
