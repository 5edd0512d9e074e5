"""List trained and installed versions, show what made one, put one into use, go back, export, import and remove."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lib.cli.common import MIB, MODEL_DIR

if TYPE_CHECKING:
    from lib.registry.store import ModelStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    names = "list|show|activate|rollback|export|import|remove"
    actions = parser.add_subparsers(dest="action", required=True, metavar=names)
    listing = actions.add_parser("list", help="list versions; * marks the ones in use")
    listing.add_argument("--removed", action="store_true", help="those whose weights were removed, too")
    show = actions.add_parser("show", help="print parent, labels, settings and gate report of a version")
    activate = actions.add_parser("activate", help="put a version into use; running servers follow at once")
    activate.add_argument("--force", action="store_true", help="even if the gate refused it")
    rollback = actions.add_parser("rollback", help="put the versions into use that were in use before")
    export = actions.add_parser("export", help="write a version as a zip that nnU-Net takes too")
    for action in (show, activate, export):
        action.add_argument("name", metavar="NAME", help="a version from the list, or starter")
    export.add_argument("zip", type=Path, metavar="FILE")
    importing = actions.add_parser("import", help="add the models of a zip or folder, without using them")
    importing.add_argument("zip", type=Path, metavar="FILE", help="a zip, or a folder such as nnU-Net's results")
    importing.add_argument("--name", default="", help="of the new version (default: the exported one's)")
    remove = actions.add_parser("remove", help="delete the weights of versions; their records stay")
    remove.add_argument("names", nargs="+", metavar="NAME", help="versions that are not in use")
    remove.add_argument(
        "--force", action="store_true", help="even what rollback would go back to, or trainings began with"
    )
    for action in (listing, show, activate, rollback, export, importing, remove):
        action.add_argument("--data-dir", type=Path, default=MODEL_DIR, metavar="DIR", help="model folder")


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from lib.registry.store import ModelStore

    actions: dict[str, Callable[[ModelStore, argparse.Namespace], None]] = {
        "list": _list,
        "show": _show,
        "activate": _activate,
        "rollback": _roll_back,
        "export": _export,
        "import": _import,
        "remove": _remove,
    }
    actions[arguments.action](ModelStore(arguments.data_dir), arguments)
    return 0


def _list(store: "ModelStore", arguments: argparse.Namespace) -> None:
    from lib.registry.manage import list_versions

    for entry in list_versions(store, removed=arguments.removed):
        used = f"  in use for step {' and '.join(map(str, entry.active_steps))}" if entry.active_steps else ""
        made = f"  from {entry.parent}, {entry.corrections} corrections, {entry.created}" if entry.parent else ""
        gone = f"  removed {entry.removed}" if entry.removed else ""
        print(f"{'*' if entry.active_steps else ' '} {entry.name}{used}{made}{gone}")
        if entry.verdict:
            print(f"    {entry.verdict}")


def _show(store: "ModelStore", arguments: argparse.Namespace) -> None:
    from lib.registry.manage import show_version

    print(json.dumps(show_version(store, arguments.name), indent=2, ensure_ascii=False))


def _activate(store: "ModelStore", arguments: argparse.Namespace) -> None:
    from lib.errors import WeightsError
    from lib.nnunet.model_folder import models_in
    from lib.registry.manage import require_served
    from lib.registry.store import ModelStore as Store

    if not arguments.force:
        require_served(store, arguments.name)
    choice = Store(store.model_dir, weights=arguments.name)
    steps = tuple(models_in(choice.resolve(1).root))
    if not steps:
        raise WeightsError(f"a version with a usable model is required, got {arguments.name!r}; see 'models list'")
    store.activate(arguments.name, steps=steps)
    print(f"{arguments.name} is in use now for step {' and '.join(map(str, steps))}")


def _roll_back(store: "ModelStore", arguments: argparse.Namespace) -> None:
    for step, name in store.go_back().items():
        print(f"step {step}: {name} is in use now")


def _export(store: "ModelStore", arguments: argparse.Namespace) -> None:
    from lib.nnunet.model_zips import export_version

    print(f"wrote {export_version(store, arguments.name, arguments.zip)}")


def _import(store: "ModelStore", arguments: argparse.Namespace) -> None:
    from lib.nnunet.model_folder import models_in
    from lib.nnunet.model_zips import import_version

    name = import_version(store, arguments.zip, name=arguments.name)
    steps = " and ".join(map(str, models_in(store.versions_dir / name)))
    print(f"imported {name}, a model of step {steps}; put it into use with: totalspineseg models activate {name}")


def _remove(store: "ModelStore", arguments: argparse.Namespace) -> None:
    from lib.registry.removal import remove_versions

    freed = remove_versions(store, arguments.names, force=arguments.force)
    print(f"removed {', '.join(arguments.names)}: {freed / MIB:.0f} MiB are free again; 'models show' knows them still")
