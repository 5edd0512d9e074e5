"""Check label maps for what cannot be right: gaps, duplicates, wrong order, fragments, strange values.

Prints one line for each finding, and what could not be checked; the exit code is 1 if there is any.
"""

import argparse
from pathlib import Path

from lib.cli.common import existing_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("files", type=existing_path, nargs="+", metavar="FILE", help="label map of TotalSpineSeg codes")


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    found = sum([_lint_file(path, several=len(arguments.files) > 1) for path in arguments.files])
    return 1 if found else 0


def _lint_file(path: Path, *, several: bool) -> int:
    """Print the findings of one file; return how many."""
    from nibabel.affines import apply_affine

    from lib.geometry import to_ras
    from lib.numbering.lint import lint
    from lib.volume_io import read_integers

    prefix = f"{path.name}: " if several else ""
    volume = to_ras(read_integers(path))
    findings = lint(volume.data, volume.spacing)
    for finding in findings:
        where = ""
        if finding.point_vox is not None:
            x, y, z = apply_affine(volume.affine, finding.point_vox)
            where = f" Look at {x:.0f}, {y:.0f}, {z:.0f} mm (RAS)."
        print(f"{prefix}{finding.kind}: {finding.message}{where}")
    return len(findings)
