"""Measure label maps, such as a reader's: volume, location and intensity of every structure, heights, areas, angles.

A run measures its own results; this command is for other label maps. See docs/measurements.md for the columns.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from totalspineseg_server.cli import cli_messages
from totalspineseg_server.cli.common import add_numbers_argument, existing_path
from totalspineseg_server.errors import TotalSpineSegError

if TYPE_CHECKING:
    from totalspineseg_server.measurements import Row

ENDINGS: Final = (".csv", ".json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "labels", type=existing_path, metavar="LABELS", help="label map of TotalSpineSeg codes, or a folder of them"
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="table to write, ending in .csv or .json")
    parser.add_argument(
        "--image",
        type=existing_path,
        metavar="IMAGE",
        help="image on the voxels of the map, whose intensities are measured; a folder of images with the same names "
        "if LABELS is a folder",
    )
    add_numbers_argument(parser, "each map")


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code: 1 if a map could not be measured."""
    from totalspineseg_server.cohort.documents import csv_of
    from totalspineseg_server.files import write_json, write_text
    from totalspineseg_server.io.volumes import images_in, stem

    labels, output, image = arguments.labels, arguments.output, arguments.image
    if not output.name.lower().endswith(ENDINGS):
        raise TotalSpineSegError(f"OUT must be a file ending in {' or '.join(ENDINGS)}, got {str(output)!r}")
    files = images_in(labels, "*") if labels.is_dir() else (labels,)
    if not files:
        raise TotalSpineSegError(cli_messages.NO_LABEL_MAPS.format(folder=str(labels)))
    rows, failed = list["Row"](), 0
    for file in files:
        try:
            rows += [{"scan": stem(file), **row} for row in _measured(file, image, arguments.numbers)]
        except TotalSpineSegError as error:
            if len(files) == 1:
                raise
            failed += 1
            print(f"{file.name}: {error}", file=sys.stderr)
    if output.name.lower().endswith(".json"):
        write_json(output, rows, allow_nan=False)
    else:
        write_text(output, csv_of(rows))
    print(f"measured {len(files) - failed} of {len(files)} label maps into {output}")
    return 1 if failed else 0


def _measured(file: Path, image: Path | None, numbers: str) -> "list[Row]":
    from totalspineseg_server.geometry import labels_to_iso, on_grid
    from totalspineseg_server.io.volumes import image_named, read_codes, read_image, stem
    from totalspineseg_server.measurements import structure_rows

    label = read_codes(file, numbers)
    source = image_named(image, stem(file)) if image is not None and image.is_dir() else image
    if image is not None and source is None:
        raise TotalSpineSegError(cli_messages.NO_IMAGE.format(name=stem(file), folder=str(image)))
    if source is None:
        grid, intensities = label.grid, None
    else:
        picture = read_image(source)
        grid, intensities = picture.grid, (picture, on_grid(label, picture.grid).data)
    return structure_rows(labels_to_iso(label), grid, image=intensities, sizes=not label.grid.is_skewed)
