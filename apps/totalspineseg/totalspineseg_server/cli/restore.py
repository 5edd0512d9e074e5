"""Restore a backup into folders without corrections and versions; nothing is ever replaced.

Every file is compared with its hash before anything appears in its place.
"""

import argparse
from pathlib import Path

from totalspineseg_server.cli.common import MODEL_DIR, existing_path
from totalspineseg_server.places import COMMAND


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("file", type=existing_path, metavar="FILE", help="backup to restore")
    parser.add_argument(
        "studies",
        type=Path,
        nargs="?",
        metavar="STUDIES",
        help="folder for the studies, or for --work; it must be missing, empty, or hold images only",
    )
    parser.add_argument("--check", action="store_true", help="compare the files with their hashes, and write nothing")
    parser.add_argument(
        "--data-dir", type=Path, default=MODEL_DIR, metavar="DIR", help="model folder; it must not have versions"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    from totalspineseg_server.exchange.site_archive import SETTINGS, STUDIES
    from totalspineseg_server.exchange.site_restore import read_backup, restore
    from totalspineseg_server.registry.model_store import ModelStore

    if arguments.check:
        print(f"{arguments.file} is sound: {read_backup(arguments.file).summary()}")
        return 0
    studies: Path | None = arguments.studies
    if studies is None:
        raise argparse.ArgumentTypeError("expected STUDIES, the folder to restore into, or --check")
    manifest = restore(arguments.file, studies, ModelStore(arguments.data_dir))
    print(f"restored {manifest.summary()}; every file was compared with its hash")
    if manifest.part(SETTINGS):
        print(f"the settings files are in {manifest.settings_folder(studies)}; put them where they belong")
    if not manifest.images:
        print("copy the images into their folder before you start the server")
    options = f"--studies {studies}" if manifest.kind == STUDIES else f"--studies IMAGES --work {studies}"
    print(f"start it with: {COMMAND} serve {options}")
    return 0
