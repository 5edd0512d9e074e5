"""Install the official weights (from the web, or from zips on disk), or list what is installed."""

import argparse
import sys
from pathlib import Path

from totalspineseg_server.cli.common import MIB, MODEL_DIR
from totalspineseg_server.errors import WeightsError
from totalspineseg_server.places import COMMAND
from totalspineseg_server.registry.releases import NEWEST, RELEASES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="install|list")
    install = actions.add_parser("install", help="install the official weights and put them into use")
    install.add_argument(
        "--zip",
        nargs="+",
        action="extend",
        default=[],
        type=Path,
        metavar="FILE",
        help="zips on disk instead of a download",
    )
    install.add_argument(
        "--release",
        default=NEWEST,
        choices=RELEASES,
        help=f"official release to download (default: {NEWEST})",
    )
    install.add_argument(
        "--sha256",
        nargs="+",
        action="extend",
        default=[],
        metavar="HEX",
        help="expected hashes, in the order of the zips",
    )
    listing = actions.add_parser("list", help="list installed versions; * marks the ones in use")
    for action in (install, listing):
        action.add_argument("--data-dir", type=Path, default=MODEL_DIR, metavar="DIR", help="model folder")


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    (_install if arguments.action == "install" else _list)(arguments)
    return 0


def _install(arguments: argparse.Namespace) -> None:
    from totalspineseg_server.nnunet.installation import INSTALL_BYTES, LICENSE_NOTE, install
    from totalspineseg_server.registry.model_store import ModelStore
    from totalspineseg_server.registry.releases import release_text

    print(LICENSE_NOTE)
    if not arguments.zip:
        print(
            f"Downloading release {arguments.release}: two files of just under 1 GiB each; with unpacking they take "
            f"about {INSTALL_BYTES / 1e9:.1f} GB of disk.",
            flush=True,
        )
    name = install(
        arguments.data_dir,
        release=arguments.release,
        zips=arguments.zip,
        sha256=arguments.sha256,
        progress=_Bar(),
    )
    print(f"installed {name}; it is in use now")
    if text := release_text(ModelStore(arguments.data_dir), {1: name, 2: name}):
        print(text)


class _Bar:
    """Shows the progress of a download in megabytes: in one line on a terminal, elsewhere a line for every tenth of
    it."""

    def __init__(self) -> None:
        self._reported = -1

    def __call__(self, done: int, total: int) -> None:
        terminal = sys.stderr.isatty()
        percent = 100 * done // total if total else 0
        mark = percent if terminal else percent // 10
        if mark == self._reported and total:
            return
        self._reported = mark
        size = f"{done / MIB:.0f} of {total / MIB:.0f} MiB ({percent} %)" if total else f"{done / MIB:.0f} MiB"
        end = "\n" if done == total or not terminal else ""
        print(f"\r\x1b[2K{size}" if terminal else size, end=end, file=sys.stderr, flush=True)


def _list(arguments: argparse.Namespace) -> None:
    from totalspineseg_server.registry.model_store import STARTER, ModelStore
    from totalspineseg_server.registry.releases import release_text

    store = ModelStore(arguments.data_dir)
    chosen: dict[str, list[int]] = {}
    for step in (1, 2):
        try:
            chosen.setdefault(store.resolve(step).name, []).append(step)
        except WeightsError as error:
            if store.versions():
                print(f"step {step}: {error}", file=sys.stderr)
    starter = (STARTER,) if store.starter_dir.is_dir() else ()
    for name in (*starter, *store.versions()):
        steps = chosen.get(name, [])
        text = f"  in use for step {' and '.join(map(str, steps))}" if steps else ""
        print(f"{'*' if steps else ' '} {name}{text}")
    in_use = {step: name for name, steps in chosen.items() for step in steps}
    if release := release_text(store, in_use):
        print(release)
    if not starter and not store.versions():
        print(f"no weights in {store.model_dir}; to install them: {COMMAND} weights install")
