"""Tests that the program accepts every command on the pages about the command line; offline ones are run."""

import argparse
import re
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from totalspineseg_server.anatomy import NUMBER_TABLES
from totalspineseg_server.cli import COMMANDS, _parser, main
from totalspineseg_server.cohort.outputs import FOLDERS
from totalspineseg_server.io.volumes import read_labels, write_volume

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
EXCHANGE = (ROOT / "docs" / "exchange.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
LINES = [
    line
    for block in re.findall(r"```\n(.*?)```", PAGE + EXCHANGE, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("totalspineseg")
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the page's commands use."""
    golden, folder = ROOT / "tests" / "golden" / "lower_lumbar_clean", tmp_path_factory.mktemp("page")
    shutil.copy(golden / "step2_raw.nii.gz", folder)
    shutil.copy(golden / "step2_output.nii.gz", folder / "labels.nii.gz")
    for name in ("folder_of_maps", "studies", "bids", "STUDIES", "OUT"):
        (folder / name).mkdir()
    labels = read_labels(golden / "step2_output.nii.gz")
    numbers = np.zeros(256, np.uint8)
    for number, code in NUMBER_TABLES["totalsegmentator-mr"].codes.items():
        numbers[code] = number
    write_volume(folder / "vertebrae.nii.gz", numbers[labels.data], labels.grid)
    shutil.copy(golden / "step2_raw.nii.gz", folder / "folder_of_maps" / "a.nii.gz")
    return folder


@pytest.fixture
def beside(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a copy of the folder with the files that the page's commands use."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def test_the_page_has_commands() -> None:
    assert len(LINES) >= 10


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("line", LINES)
def test_commands_of_the_page(line: str) -> None:
    words = line.split()[1:]
    command = words.pop(0) if words[0] in COMMANDS else "run"
    if command in ("label", "lint", "measure"):
        # The pinned point lies anywhere: the command still answers, and says that it was not used.
        assert main([command, *words]) == 0
    else:
        _parser(command, import_module(f"totalspineseg_server.cli.{command.replace('-', '_')}")).parse_args(words)


def test_the_page_names_every_option_and_folder() -> None:
    options = set(
        re.findall(r"--[a-z0-9-]+", _parser("run", import_module("totalspineseg_server.cli.run")).format_help())
    ) - {"--help"}
    assert {option for option in options if f"`{option}" not in PAGE} == set()
    assert {folder for folder in FOLDERS if f"`{folder}" not in RESULTS} == set()
    assert {command for command in COMMANDS if f"totalspineseg {command}" not in PAGE} == set()


def unexplained(parser: argparse.ArgumentParser) -> list[str]:
    """Return the options and arguments without help, including those of subcommands."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [name for each in action.choices.values() for name in unexplained(each)]
        elif not action.help:
            found.append(action.option_strings[-1] if action.option_strings else action.dest)
    return found


@pytest.mark.parametrize("command", ["run", *COMMANDS])
def test_the_help_of_a_command_explains_every_option(command: str) -> None:
    """``retrain --help`` listed eight options without an explanation."""
    assert unexplained(_parser(command, import_module(f"totalspineseg_server.cli.{command.replace('-', '_')}"))) == []
