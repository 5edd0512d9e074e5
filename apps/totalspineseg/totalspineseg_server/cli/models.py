"""List, show, judge, activate, export, import and remove trained and installed versions, and roll back."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from totalspineseg_server.cli.common import MIB, MODEL_DIR, existing_path
from totalspineseg_server.places import COMMAND

if TYPE_CHECKING:
    from totalspineseg_server.registry.model_store import ModelStore


_TABLE: Final = "{:<12}{:>8}{:>11}{:>8}{:>8}{:>8}{:>10}{:>9}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    names = "list|show|judge|activate|rollback|export|import|remove"
    actions = parser.add_subparsers(dest="action", required=True, metavar=names)
    listing = actions.add_parser("list", help="list versions; * marks the ones in use")
    listing.add_argument("--removed", action="store_true", help="also list versions whose weights were removed")
    show = actions.add_parser("show", help="print parent, labels, settings and gate report of a version")
    judging = actions.add_parser(
        "judge",
        help="let the gate compare a version with the weights in use (or the weights in use with the previous ones)",
    )
    activate = actions.add_parser("activate", help="put a version into use; running servers follow at once")
    activate.add_argument("--force", action="store_true", help="activate it even if the gate refused it")
    rollback = actions.add_parser("rollback", help="put the previous versions into use again")
    export = actions.add_parser("export", help="write a version as a zip that nnU-Net can read as well")
    for action in (show, judging, activate, export):
        action.add_argument("name", metavar="NAME", help="a version from the list, or starter")
    judging.add_argument(
        "studies",
        nargs="?",
        type=existing_path,
        metavar="STUDIES",
        help="studies whose hold-out is also used for the comparison (default: none)",
    )
    judging.add_argument(
        "--device", default="auto", metavar="cuda|cpu", help="device to run on (default: a GPU if there is one)"
    )
    export.add_argument("zip", type=Path, metavar="FILE", help="zip to write")
    importing = actions.add_parser("import", help="add the models of a zip or folder, without using them")
    importing.add_argument("zip", type=Path, metavar="FILE", help="a zip, or a folder such as nnU-Net's results")
    importing.add_argument("--name", default="", help="name of the new version (default: the exported version's name)")
    remove = actions.add_parser("remove", help="delete the weights of versions; their records stay")
    remove.add_argument("names", nargs="+", metavar="NAME", help="versions that are not in use")
    remove.add_argument(
        "--force",
        action="store_true",
        help="remove even a version that rollback would return to, or that trainings started from",
    )
    for action in (listing, show, judging, activate, rollback, export, importing, remove):
        action.add_argument("--data-dir", type=Path, default=MODEL_DIR, metavar="DIR", help="model folder")


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code: 1 if a version does not pass."""
    from totalspineseg_server.registry.model_store import ModelStore

    actions: dict[str, Callable[[ModelStore, argparse.Namespace], int | None]] = {
        "list": _list,
        "show": _show,
        "judge": _judge,
        "activate": _activate,
        "rollback": _roll_back,
        "export": _export,
        "import": _import,
        "remove": _remove,
    }
    return actions[arguments.action](ModelStore(arguments.data_dir), arguments) or 0


def _list(store: "ModelStore", arguments: argparse.Namespace) -> None:
    from totalspineseg_server.registry.manage import list_versions

    for entry in list_versions(store, removed=arguments.removed):
        used = f"  in use for step {' and '.join(map(str, entry.active_steps))}" if entry.active_steps else ""
        made = f"  from {entry.parent}, {entry.corrections} corrections, {entry.created}" if entry.parent else ""
        gone = f"  removed {entry.removed}" if entry.removed else ""
        print(f"{'*' if entry.active_steps else ' '} {entry.name}{used}{made}{gone}")
        for sentence in filter(None, (entry.verdict, entry.judged)):
            print(f"    {sentence}")


def _show(store: "ModelStore", arguments: argparse.Namespace) -> None:
    from totalspineseg_server.registry.manage import show_version

    print(json.dumps(show_version(store, arguments.name), indent=2, ensure_ascii=False))


def _judge(store: "ModelStore", arguments: argparse.Namespace) -> int:
    from totalspineseg_server.nnunet.runtimes import require
    from totalspineseg_server.training.judged_version import judge_version
    from totalspineseg_server.training.site import site_of
    from totalspineseg_server.training.verdict import NUMBERS, GateReport

    def tell(text: str) -> None:
        print(text, file=sys.stderr)

    require(arguments.device, "torch")
    site = site_of(arguments.studies, store) if arguments.studies else None
    judgment = judge_version(store, arguments.name, site, device=arguments.device, tell=tell)
    report = GateReport.from_json(judgment.report)
    print(f"{report.candidate} compared with {report.active}")
    print(_TABLE.format("measure", "active", "candidate", "change", "lower", "margin", "subjects", "allowed"))
    for entry in report.sets:
        print(f"{entry.name}:")
        for measure in entry.comparisons:
            numbers = [getattr(measure, name) for name in NUMBERS]
            cells = ["-" if number != number else f"{number:.3f}" for number in numbers]
            allowed = "yes" if measure.allowed else "no"
            print(_TABLE.format(f"  {measure.measure}", *cells, measure.subjects, allowed))
    for case in report.left_out:
        print(f"could not be used: {case}")
    print(f"{arguments.name} {judgment.verdict}")
    if not judgment.passed and arguments.name in store.active().values():
        print(f"it is in use; to return to the previous weights: {COMMAND} models rollback")
    return 0 if judgment.passed else 1


def _activate(store: "ModelStore", arguments: argparse.Namespace) -> None:
    from totalspineseg_server.nnunet.model_folder import activate
    from totalspineseg_server.registry.manage import was_judged

    steps = activate(store, arguments.name, force=arguments.force)
    print(f"{arguments.name} is in use now for step {' and '.join(map(str, steps))}")
    if not was_judged(store, arguments.name):
        print(
            f"the gate has not judged it; to compare it with the previous weights: {COMMAND} models judge "
            f"{arguments.name} STUDIES"
        )


def _roll_back(store: "ModelStore", arguments: argparse.Namespace) -> None:
    for step, name in store.go_back().items():
        print(f"step {step}: {name} is in use now")


def _export(store: "ModelStore", arguments: argparse.Namespace) -> None:
    from totalspineseg_server.nnunet.model_zips import export_version

    print(f"wrote {export_version(store, arguments.name, arguments.zip)}")


def _import(store: "ModelStore", arguments: argparse.Namespace) -> None:
    from totalspineseg_server.nnunet.model_folder import models_in
    from totalspineseg_server.nnunet.model_zips import import_version

    name = import_version(store, arguments.zip, name=arguments.name)
    steps = " and ".join(map(str, models_in(store.versions_dir / name)))
    print(f"imported {name}, a model of step {steps}; put it into use with: {COMMAND} models activate {name}")


def _remove(store: "ModelStore", arguments: argparse.Namespace) -> None:
    from totalspineseg_server.registry.removal import remove_versions

    freed = remove_versions(store, arguments.names, force=arguments.force)
    print(f"removed {', '.join(arguments.names)}: {freed / MIB:.0f} MiB freed; 'models show' still shows their records")
