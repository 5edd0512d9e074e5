"""Number the raw map of a network (step 1 or step 2), without running a network.

IN is a label map or a folder of label maps (.nii.gz, .nii, .nrrd). OUT is a file on the grid of IN, or a folder of
files with the same names.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from totalspineseg_server.cli import cli_messages
from totalspineseg_server.cli.common import (
    add_numbering_arguments,
    add_numbers_argument,
    existing_path,
    pins_of,
    print_unmet_pins,
)
from totalspineseg_server.errors import TotalSpineSegError
from totalspineseg_server.trust import certainty_of, is_doubtful

if TYPE_CHECKING:
    from totalspineseg_server.numbering.evidence import Pin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("input", type=existing_path, metavar="IN", help="raw label map, or a folder of them")
    parser.add_argument("output", type=Path, metavar="OUT", help="label map to write, or a folder")
    parser.add_argument(
        "--step",
        type=int,
        choices=(1, 2),
        help="network that made the map (default: recognized by the values of its canal)",
    )
    parser.add_argument(
        "--loc", type=existing_path, metavar="FILE", help="label map of another series of the patient, on any grid"
    )
    add_numbers_argument(parser, "the map of --loc")
    add_numbering_arguments(parser)
    parser.add_argument(
        "--report", type=Path, metavar="FILE.json", help="file for the report on the levels; a folder if IN is one"
    )


@dataclass(frozen=True)
class _Request:
    """Settings for every map."""

    step: Literal[1, 2] | None
    localizer: Path | None
    numbers: str
    pins: "tuple[Pin, ...]"
    method: Literal["chain", "iterative"]


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    request = _Request(arguments.step, arguments.loc, arguments.numbers, pins_of(arguments), arguments.method)
    source: Path = arguments.input
    if not source.is_dir():
        _require_name(arguments.output)
        _label_file(source, arguments.output, arguments.report, request)
        return 0
    return _label_folder(source, arguments.output, arguments.report, request)


def _require_name(output: Path) -> None:
    from totalspineseg_server.io.volumes import WRITTEN_SUFFIXES

    if output.is_dir() or not output.name.lower().endswith(WRITTEN_SUFFIXES):
        raise TotalSpineSegError(f"OUT must be a file ending in {' or '.join(WRITTEN_SUFFIXES)}, got {str(output)!r}")


def _label_folder(source: Path, output: Path, reports: Path | None, request: _Request) -> int:
    """Number every map of a folder; a bad map does not stop the rest."""
    from totalspineseg_server.io.volumes import (
        WRITTEN_SUFFIXES,
        images_in,
        is_image_name,
        is_other_name,
        not_read_sentence,
        stem,
    )

    files = images_in(source, "*", WRITTEN_SUFFIXES)
    kinds = [path for path in source.iterdir() if is_image_name(path) or is_other_name(path)]
    others = {path.name for path in kinds if not path.name.startswith(".") and not path.is_dir()}
    if skipped := not_read_sentence(others - {path.name for path in files}, WRITTEN_SUFFIXES):
        print(skipped, file=sys.stderr)
    if not files:
        endings = ", ".join(WRITTEN_SUFFIXES)
        raise TotalSpineSegError(cli_messages.NO_MAPS.format(endings=endings, source=str(source)))
    if request.pins:
        raise TotalSpineSegError(cli_messages.ONE_SCAN_FOR_PIN)
    failed = 0
    for path in files:
        report = None if reports is None else reports / f"{stem(path)}.json"
        try:
            _label_file(path, output / path.name, report, request)
        except TotalSpineSegError as error:
            failed += 1
            print(f"{path.name}: {error}", file=sys.stderr)
    return 1 if failed else 0


def _label_file(source: Path, output: Path, report_file: Path | None, request: _Request) -> None:
    from totalspineseg_server.geometry import labels_from_iso, labels_on_grid, labels_to_iso
    from totalspineseg_server.io.file_content import real_path
    from totalspineseg_server.io.volumes import read_codes, read_labels, write_volume
    from totalspineseg_server.numbering.naming import label_map, step_of
    from totalspineseg_server.numbering.report import sentence

    if real_path(output) == real_path(source):
        raise TotalSpineSegError(cli_messages.OUT_IS_IN.format(output=str(output)))
    volume = read_labels(source)
    iso = labels_to_iso(volume)
    located = None if request.localizer is None else read_codes(request.localizer, request.numbers)
    localizer = None if located is None else labels_on_grid(located, iso.grid)
    step = request.step or step_of(iso.data)
    labels, report = label_map(iso, step, localizer=localizer, pins=request.pins, method=request.method)
    print_unmet_pins(source.name, report)
    if (answer := sentence(report)) and certainty_of(report) != "certain":
        settle = f"; to make the names certain: {', or '.join(report['would_settle'])}" if is_doubtful(report) else ""
        print(f"{source.name}: {answer}{settle}", file=sys.stderr)
    _make_folder(output.parent)
    write_volume(output, labels_from_iso(labels, iso.grid, volume.grid), volume.grid)
    if report_file is not None:
        _make_folder(report_file.parent)
        _write_report(report_file, report)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TotalSpineSegError(cli_messages.CANNOT_WRITE.format(folder=str(folder), error=error)) from error


def _write_report(path: Path, report: dict[str, Any]) -> None:
    from totalspineseg_server.files import write_json

    write_json(path, report, allow_nan=False)
