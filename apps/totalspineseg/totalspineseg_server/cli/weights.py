"""Install the official weights (from the web, or from zips on disk), list what is installed, or find out whether they
can run faster.

quantize tries faster ways of computing: a box around the spine instead of the whole image, INT8 (whole numbers of eight
bits) on a CPU, and half precision on a GPU, if there is one. It compares their results with the exact ones, prints a
table and stores it beside the weights. The box and half precision are used from then on if they passed; INT8 is used
only with --runtime openvino-int8."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from totalspineseg_server.cli import cli_messages
from totalspineseg_server.cli.common import MIB, MODEL_DIR, existing_path, positive
from totalspineseg_server.errors import WeightsError
from totalspineseg_server.places import COMMAND
from totalspineseg_server.registry.releases import NEWEST, RELEASES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from totalspineseg_server.nnunet.fast_ways import Comparison
    from totalspineseg_server.pipeline import Scan
    from totalspineseg_server.registry.model_store import ModelStore

LARGE_BYTES: Final = 100 * MIB
"""Smallest checkpoint for which the runtime matters; the official ones are ten times as large."""
MIN_SCANS: Final = 10
"""Smallest number of scans: fewer say too little about the next one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="install|list|quantize")
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
    quantize = actions.add_parser("quantize", help="compare faster ways with the exact results")
    quantize.add_argument(
        "studies",
        nargs="?",
        type=existing_path,
        metavar="STUDIES",
        help="folder of your own scans; synthetic ones make up the number of --scans (default: synthetic ones only)",
    )
    quantize.add_argument(
        "--weights", default="", metavar="NAME", help="weights to compare (default: those in use; see run --weights)"
    )
    quantize.add_argument(
        "--scans",
        type=positive,
        default=MIN_SCANS,
        metavar="N",
        help="number of scans to compare (default and minimum: %(default)s)",
    )
    for action in (install, listing, quantize):
        action.add_argument("--data-dir", type=Path, default=MODEL_DIR, metavar="DIR", help="model folder")


def execute(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    if arguments.action == "quantize":
        return _quantize(arguments)
    (_install if arguments.action == "install" else _list)(arguments)
    return 0


def _install(arguments: argparse.Namespace) -> None:
    from totalspineseg_server.nnunet.installation import INSTALL_BYTES, install
    from totalspineseg_server.registry.model_store import ModelStore
    from totalspineseg_server.registry.releases import release_text

    print(cli_messages.LICENSE_NOTE)
    if not arguments.zip:
        print(
            cli_messages.DOWNLOADING.format(release=arguments.release, gb=INSTALL_BYTES / 1e9),
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
    store = ModelStore(arguments.data_dir)
    if text := release_text(store, {1: name, 2: name}):
        print(text)
    _time_runtimes(store)


def _time_runtimes(store: "ModelStore") -> None:
    """Measure which runtime is faster on a CPU for the weights in use, so that the runtime "auto" knows."""
    from totalspineseg_server.nnunet.fast_ways import keep_seconds, openvino_release, seconds_of_a_tile
    from totalspineseg_server.nnunet.model_folder import models_in_use
    from totalspineseg_server.nnunet.runtimes import resolve_device

    if not openvino_release() or resolve_device("auto", "auto").type != "cpu":
        return
    for step, model in models_in_use(store).items():
        if model.checkpoint.stat().st_size < LARGE_BYTES:
            continue
        if not seconds_of_a_tile(model.path):
            from totalspineseg_server.nnunet.fast_comparison import seconds_by_runtime

            print(cli_messages.MEASURING_RUNTIMES.format(step=step), flush=True)
            keep_seconds(model.path, seconds_by_runtime(model))
        times = (f"{name} {seconds:g} s" for name, seconds in seconds_of_a_tile(model.path).items())
        print(f"step {step}, one tile: {', '.join(times)}")


def _quantize(arguments: argparse.Namespace) -> int:
    """Compare the faster ways; return 1 if one of them did not pass."""
    from totalspineseg_server.nnunet.fast_comparison import compare_ways
    from totalspineseg_server.nnunet.fast_ways import keep_comparison
    from totalspineseg_server.nnunet.focus import is_worth_a_look
    from totalspineseg_server.nnunet.model_folder import models_in_use
    from totalspineseg_server.nnunet.networks import coarse_look
    from totalspineseg_server.registry.model_store import ModelStore

    store = ModelStore(arguments.data_dir, weights=arguments.weights)
    models = models_in_use(store)
    look = coarse_look(store, "cpu") if is_worth_a_look(models[1]) else None
    with tempfile.TemporaryDirectory() as folder:
        scans = _scans(arguments.studies, max(arguments.scans, MIN_SCANS), Path(folder))
        found = compare_ways(models, scans, look, tell=lambda line: print(line, file=sys.stderr, flush=True))
    versions = f"{models[1].version} and {models[2].version}"
    print(f"{len(scans)} scans, weights {versions}; exact: PyTorch on the CPU, float32, the whole image\n")
    print(_table(found))
    for one in found:
        for model in models.values():
            keep_comparison(model, one)
    print("\n" + "\n".join(_consequence(one) for one in found))
    if look is None:
        print(cli_messages.NO_BOX)
    return 0 if all(one.passed for one in found) else 1


def _scans(studies: Path | None, count: int, folder: Path) -> "list[Callable[[], Scan]]":
    """Return the scans to compare, those of the studies first; each is read when it is called.

    Args:
        studies: Folder of scans, or None.
        count: Number of scans.
        folder: Folder for synthetic ones.
    """
    from totalspineseg_server.cohort.inputs import find_cases
    from totalspineseg_server.io.volumes import read_image
    from totalspineseg_server.pipeline import prepare
    from totalspineseg_server.synthesis import demo_studies

    own = [case.path for case in find_cases(studies)][:count] if studies is not None else []
    files = [*own, *demo_studies(folder, count - len(own), seed=1)]
    if len(own) < count:
        print(f"{len(own)} scans of your own and {count - len(own)} synthetic ones", file=sys.stderr)
    return [lambda file=file: prepare(read_image(file)) for file in files]  # type: ignore[misc]


def _table(found: "Sequence[Comparison]") -> str:
    """Return the comparisons as a table in Markdown."""
    groups = list(dict.fromkeys(group for one in found for group in one.dice))
    rows = [
        "| way | scans with a different name | voxels that differ "
        f"| {' | '.join(f'Dice {g}' for g in groups)} | seconds a scan, exact (CPU) | seconds | result |"
    ]
    rows.append("|---" * (6 + len(groups)) + "|")
    for one in found:
        dice = " | ".join(f"{one.dice[group]:.3f}" if group in one.dice else "" for group in groups)
        result = "passed" if one.passed else "not used"
        rows.append(
            f"| {one.way} | {one.names_differ} of {one.scans} | {one.voxels_differ:.2%} | {dice} | "
            f"{one.seconds_exact:.1f} | {one.seconds:.1f} | {result} |"
        )
    return "\n".join(rows)


def _consequence(one: "Comparison") -> str:
    """Return what a comparison means for the next scans."""
    from totalspineseg_server.nnunet.fast_ways import BOX, HALF

    if one.way == BOX:
        return cli_messages.BOX_PASSED if one.passed else cli_messages.BOX_FAILED
    if one.way == HALF:
        return cli_messages.HALF_PASSED if one.passed else cli_messages.HALF_FAILED
    return cli_messages.INT8_PASSED.format(runtime=one.way) if one.passed else cli_messages.INT8_FAILED


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
