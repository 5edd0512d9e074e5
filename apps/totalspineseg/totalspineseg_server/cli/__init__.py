"""Run the command line: ``totalspineseg INPUT OUTPUT`` and the other commands.

An installed wheel has it under the name ``totalspineseg-server``. Large libraries are imported only when a command
needs them, so that ``--help`` answers at once.
"""

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import Final, NoReturn

from totalspineseg_server.errors import TotalSpineSegError
from totalspineseg_server.places import COMMAND
from totalspineseg_server.version import VERSION

COMMANDS: Final = MappingProxyType(
    {
        "run": f"segment and number scans (also without the word: {COMMAND} INPUT OUTPUT)",
        "label": "number the raw map of a network, without running a network",
        "lint": "check a label map: gaps, duplicates, wrong order, fragments",
        "measure": "measure label maps: volume, location and intensity of structures, heights, areas, angles",
        "weights": "install or list the networks' weights",
        "models": "list, show, judge, activate, roll back, export, import or remove model versions",
        "retrain": "learn from the corrections of a studies folder; publish what passes the gate",
        "calibrate": "measure on labeled scans how far the landmark classes of networks can be trusted",
        "prepare": "turn labeled scans into nnU-Net datasets 101 and 102",
        "train": "train both networks from scratch with nnU-Net on the datasets of prepare",
        "serve": "serve a folder of studies to 3D Slicer, OHIF and other MONAI Label clients",
        "backup": "write corrections, versions and settings of a site into one file",
        "restore": "restore a backup into an empty folder",
        "export-bids": "export finished labels and images as a BIDS set without patients' names",
        "import-bids": "import the labeled images of a BIDS set as studies with finished labels",
        "train-starter": "train the small starter networks on synthetic spines and labeled scans",
    }
)
"""Command -> what it does; each is a module of this package."""

CONTINUED: Final = frozenset({"run", "retrain", "train", "train-starter"})
"""Commands that go on with what an interrupted one has done."""
EXIT_USAGE, EXIT_INTERRUPTED = 2, 130
"""Exit codes: the command cannot be carried out; Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None for those of the process.

    Returns:
        The exit code: 0 if all went well, 1 if a scan failed or ``lint`` found something, 2 if the command cannot be
        carried out, 130 if interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # A first word that is not a command is INPUT, because users of TotalSpineSeg type it like this.
    command = words.pop(0) if words and words[0] in COMMANDS else "run"
    module = import_module(f"totalspineseg_server.cli.{command.replace('-', '_')}")
    parser = _parser(command, module)
    arguments = parser.parse_args(words)
    logging.basicConfig(
        level=os.environ.get("TOTALSPINESEG_LOG", "WARNING").upper(), format="%(levelname)s %(message)s"
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A scan's name that the terminal's encoding does not support must not end a run.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code: int = module.execute(arguments)
    except (TotalSpineSegError, argparse.ArgumentTypeError) as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        remedy = "; the same command continues" if command in CONTINUED else ""
        print(f"{COMMAND}: interrupted{remedy}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The program that reads the output, such as head, has stopped reading.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


class _Parser(argparse.ArgumentParser):
    """A parser that reports a wrong argument in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser(command: str, module: ModuleType) -> _Parser:
    main_command = command == "run"
    others = "\n".join(f"  {name:<14} {text}" for name, text in COMMANDS.items() if name != "run")
    parser = _Parser(
        prog=COMMAND if main_command else f"{COMMAND} {command}",
        description=(module.__doc__ or "").replace("totalspineseg ", f"{COMMAND} "),
        epilog=f"other commands ({COMMAND} COMMAND --help):\n{others}" if main_command else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{COMMAND} {VERSION}")
    module.add_arguments(parser)
    return parser
