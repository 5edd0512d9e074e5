"""What several commands share: argument types, the model store."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lib.anatomy import BY_CODE, Kind
from lib.spellings import code_of_name

if TYPE_CHECKING:
    from lib.numbering.evidence import Pin
    from lib.registry.store import ModelStore

MODEL_DIR: Final = Path(__file__).resolve().parents[2] / "model"
"""Where the app keeps its models."""
MIB: Final = 1 << 20
"""Bytes."""
PIN_UNMET: Final = "pin_unmet"
"""Kind of the finding that a person at the command line must see at once."""
PIN_KINDS: Final = (Kind.VERTEBRA, Kind.DISC, Kind.SACRUM)


def existing_path(text: str) -> Path:
    """An argument that must exist."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"an existing file or folder is required, got {text!r}")
    return path


def positive(text: str) -> int:
    """A whole number above 0."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"a whole number above 0 is required, got {text!r}")
    return value


def pin_text(text: str) -> tuple[int, tuple[float, float, float]]:
    """``NAME@x,y,z``: a level's code and a point in it, RAS mm."""
    name, _, point = text.partition("@")
    code = code_of_name(name)
    try:
        x, y, z = (float(part) for part in point.split(","))
    except ValueError:
        code = None
    if code is None or BY_CODE[code].kind not in PIN_KINDS:
        raise argparse.ArgumentTypeError(
            f"a level and a point in it, such as L5@3.5,-12,80 (patient coordinates, RAS mm), is required, got {text!r}"
        )
    return code, (x, y, z)


def pins_of(arguments: argparse.Namespace) -> "tuple[Pin, ...]":
    """The pins of the ``--pin`` options."""
    from lib.numbering.evidence import Pin

    return tuple(Pin(code, point) for code, point in arguments.pin)


def print_unmet_pins(name: str, report: Mapping[str, Any]) -> None:
    """Say on stderr which fixed levels no structure meets.

    Args:
        name: What the scan is called.
        report: What is known of its levels, with its findings.
    """
    for finding in report["findings"]:
        if finding["kind"] == PIN_UNMET:
            print(f"{name}: {finding['message']}", file=sys.stderr)


def add_numbering_arguments(parser: argparse.ArgumentParser) -> None:
    """``--method`` and ``--pin``, as ``run`` and ``label`` have them."""
    parser.add_argument(
        "--method",
        choices=("chain", "iterative"),
        default="chain",
        help="how levels get their names: chain weighs all evidence and says how sure it is (default), "
        "iterative is the reference's rule",
    )
    parser.add_argument(
        "--pin",
        action="append",
        default=[],
        type=pin_text,
        metavar="NAME@x,y,z",
        help="fix a level: its name and a point in it in patient coordinates (RAS mm), such as L5@3.5,-12,80; "
        "may be repeated",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """``--data-dir`` and ``--weights``."""
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
        help="which weights: starter, official, an installed version, or a folder (default: the ones in use)",
    )


def model_store(data_dir: Path | None, weights: str) -> "ModelStore":
    """The models of ``--data-dir`` and ``--weights``.

    Raises:
        WeightsError: The folder does not exist.
    """
    from lib.errors import WeightsError
    from lib.registry.store import STARTER, ModelStore

    if data_dir is None:
        return ModelStore(MODEL_DIR, weights=weights)
    if not data_dir.is_dir():
        raise WeightsError(f"--data-dir must name a folder of models, got {str(data_dir)!r}")
    store = ModelStore(data_dir, weights=weights)
    ours = store.pointer.exists() or store.versions_dir.is_dir() or (data_dir / STARTER).is_dir()
    if weights or ours:
        return store
    # Somewhere below: the reference's users keep their models in DIR/nnUNet/results.
    return ModelStore(MODEL_DIR, weights=str(data_dir.resolve()))
