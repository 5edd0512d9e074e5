"""Check label maps for errors: gaps, duplicates, wrong order, fragments, strange values.

Prints which levels the numbers mean, and one line for each finding and each check that was not possible; the exit code
is 1 if there is any finding.
"""

import argparse
import sys
from pathlib import Path

from totalspineseg_server.anatomy import OWN_NUMBERS
from totalspineseg_server.cli import cli_messages
from totalspineseg_server.cli.common import add_numbers_argument, existing_path
from totalspineseg_server.errors import TotalSpineSegError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "files",
        type=existing_path,
        nargs="+",
        metavar="FILE",
        help="label map of TotalSpineSeg codes, or a folder of them",
    )
    add_numbers_argument(parser, "each map")


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code: 1 if there is a finding, or if one of several maps cannot be read."""
    files = [file for path in arguments.files for file in _maps_in(path)]
    if len(files) == 1:
        return 1 if _lint_file(files[0], arguments.numbers, several=False) else 0
    found = 0
    for path in files:
        try:
            found += _lint_file(path, arguments.numbers, several=True)
        except TotalSpineSegError as error:
            found += 1
            print(f"{path.name}: {error}", file=sys.stderr)
    return 1 if found else 0


def _maps_in(path: Path) -> tuple[Path, ...]:
    """Return the label maps of a folder, after printing which files are not read; a file or a DICOM series is returned
    unchanged.
    """
    from totalspineseg_server.io.volumes import images_in, is_other_name, not_read_sentence

    if not path.is_dir():
        return (path,)
    if skipped := not_read_sentence({file.name for file in path.iterdir() if is_other_name(file)}):
        print(skipped, file=sys.stderr)
    return images_in(path, "*") or (path,)


def _lint_file(path: Path, numbers: str, *, several: bool) -> int:
    """Print the findings of a file; return their number."""
    from nibabel.affines import apply_affine

    from totalspineseg_server.geometry import to_ras
    from totalspineseg_server.io.volumes import read_integers, read_numbered
    from totalspineseg_server.numbering.linter import levels_read, lint

    prefix = f"{path.name}: " if several else ""
    own = numbers == OWN_NUMBERS
    volume = to_ras(read_integers(path) if own else read_numbered(path, numbers))
    # This is not printed among the findings, because other programs read those.
    levels = levels_read(volume.data, "" if own else numbers)
    print(f"{prefix}{levels}", file=sys.stderr)
    findings = lint(volume.data, volume.spacing)
    for finding in findings:
        where = ""
        if finding.point_vox is not None:
            x, y, z = apply_affine(volume.affine, finding.point_vox)
            where = " " + cli_messages.LOOK_AT.format(x=x, y=y, z=z)
        print(f"{prefix}{finding.kind}: {finding.message}{where}")
    return len(findings)
