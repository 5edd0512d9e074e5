"""Write the submissions of readers, the trained versions and settings files into one file.

A server may be running. Every file is read back and compared before FILE appears. Images are left out, unless --images
asks for them; the weights that come with this software are left out as well.
"""

import argparse
from pathlib import Path

from totalspineseg_server.cli import cli_messages
from totalspineseg_server.cli.common import MIB, MODEL_DIR, existing_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "studies", type=existing_path, metavar="STUDIES", help="folder of studies, or the --work folder of a server"
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="backup to write, such as site.zip; it must not exist")
    parser.add_argument(
        "--settings",
        type=existing_path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="settings files to add, such as .env or a profile of a cluster; passwords in them are in the backup",
    )
    parser.add_argument(
        "--images", action="store_true", help="also add the images; the backup then contains patients' scans"
    )
    parser.add_argument("--data-dir", type=Path, default=MODEL_DIR, metavar="DIR", help="model folder")


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    from totalspineseg_server.errors import StorageError
    from totalspineseg_server.exchange.site_backup import write_backup
    from totalspineseg_server.registry.model_store import ModelStore
    from totalspineseg_server.training.site import has_corrections

    studies: Path = arguments.studies
    if not has_corrections(studies):
        raise StorageError(cli_messages.NOTHING_TO_BACK_UP.format(folder=str(studies)))
    manifest = write_backup(
        studies,
        ModelStore(arguments.data_dir),
        arguments.file,
        settings=arguments.settings,
        images=arguments.images,
    )
    size = arguments.file.stat().st_size / MIB
    print(f"wrote {arguments.file}: {manifest.summary()}, {size:.1f} MiB; every file was read back and compared")
    print("if a server is running, labels that were sent since the backup began may be missing")
    if not arguments.images:
        print("it has no images: back these up, too, because a label cannot be used for training without its image")
    return 0
