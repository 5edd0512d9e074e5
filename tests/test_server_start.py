"""Tests that errors at the server's start give one sentence and exit code 2, before anything is written."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiny_models import DATASETS, write_models
from totalspineseg_server import cli
from totalspineseg_server.front.sockets import listening
from totalspineseg_server.nnunet.discovery import TRUST_FILE
from totalspineseg_server.processes import free_port
from totalspineseg_server.version import VERSION

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the output of a start that must fail."""
    try:
        code = cli.main(["serve", *words])
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    assert (code, printed.out, printed.err.count("\n")) == (cli.EXIT_USAGE, "", 1), printed
    return printed.err


@pytest.fixture(autouse=True)
def _never_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uvicorn.Server.run", pytest.fail)


def test_a_taken_port_is_refused_before_anything_is_written(
    tmp_path: Path, taken: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder was filled with demo studies and the log was written before the start failed with exit code 1."""
    studies = tmp_path / "studies"
    sentence = refusal(capsys, "--studies", str(studies), "--port", str(taken))
    assert (str(taken) in sentence, "--port" in sentence) == (True, True)
    assert not studies.exists()


@pytest.mark.parametrize("port", ["0", "-1", "65536", "70000", "eight", ""])
def test_a_port_that_does_not_exist_is_refused(tmp_path: Path, port: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Port 70000 ended the server with a traceback after everything had been written."""
    assert "port" in refusal(capsys, "--studies", str(tmp_path / "studies"), "--port", port).lower()
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize("host", ["", "203.0.113.7", "no such host", "x" * 300, "300.1.1.1", "http://127.0.0.1"])
def test_a_host_that_is_not_this_machine_is_refused(
    tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--studies", str(tmp_path / "studies"), f"--host={host}", "--port", str(free_port())]
    assert "--host" in refusal(capsys, *words)
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--weights", "missing"], "'starter', 'official'"),
        (["--weights", "EMPTY"], "EMPTY"),
        (["--runtime", "tensorrt"], "--runtime"),
        (["--device", "gpu"], "device"),
        (["--max-upload-mb", "0"], "--max-upload-mb"),
        (["--max-upload-mb", "nan"], "--max-upload-mb"),
        (["--cache-gb", "-1"], "--cache-gb"),
        (["--studies", "ftp://pacs/dicom"], "DICOMweb"),
        (["--studies", "http://"], "DICOMweb"),
        (["--studies", "http://pacs:99999/dicom-web"], "DICOMweb"),
        (["--studies", "~no-such-user/mri"], "--studies"),
        (["--studies", "FILE"], "cannot be read"),
        (["--studies", "FILE/studies"], "cannot be read"),
        (["--studies", "LOOP"], "--studies"),
        (["--studies", ""], "Name a folder"),
        (["--studies", "nowhere", "--work", "WORK"], "--studies"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_used_is_named(
    options: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong WEIGHTS were noticed only when the first reader pressed Run, and a mistyped address became a folder of demo
    studies."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "LOOP").symlink_to("LOOP")
    before = sorted(tmp_path.rglob("*"))
    assert word in refusal(capsys, "--studies", "studies", "--port", str(free_port()), *options)
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_whose_record_of_errors_is_damaged_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This was noticed only when the first reader pressed Run."""
    weights = write_models(tmp_path / "weights")
    (plans,) = (weights / DATASETS[2]).rglob("plans.json")
    (plans.parent / TRUST_FILE).write_text("{", encoding="utf-8")
    words = ["--weights", str(weights), "--studies", str(tmp_path), "--port", str(free_port())]
    assert TRUST_FILE in refusal(capsys, *words)


def test_a_folder_that_may_not_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The start ended with a traceback. Tests may run as root, who may read everything."""

    def closed(folder: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("os.scandir", closed)
    sentence = refusal(capsys, "--studies", str(tmp_path), "--port", str(free_port()))
    assert ("Permission denied" in sentence, str(tmp_path) in sentence) == (True, True)


def test_a_port_is_held_from_the_first_moment_on() -> None:
    """Two servers that were started at once both found the port free, and one failed after it had written."""
    port = free_port()
    with (
        listening("localhost", port),
        pytest.raises(cli.TotalSpineSegError, match="taken"),
        listening("127.0.0.1", port),
    ):
        pass
    with listening("127.0.0.1", port) as (again,):
        assert again.getsockname() == ("127.0.0.1", port)


@pytest.mark.parametrize("words", [["--version"], ["serve", "--version"], ["weights", "--version"]], ids=" ".join)
def test_the_version_is_printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert (stop.value.code, capsys.readouterr().out) == (0, f"totalspineseg {VERSION}\n")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--dicomweb", "pacs:8042/dicom-web"], "DICOMweb"),
        (["--weights", "missing"], "'starter', 'official'"),
        (["--port", "70000"], "70000"),
        (["--host", "203.0.113.7"], "203.0.113.7"),
    ],
    ids=" ".join,
)
def test_serve_ohif_starts_no_pacs_for_a_server_that_cannot_start(
    options: list[str], word: str, tmp_path: Path
) -> None:
    """An address without http:// was read as a folder and filled with demo studies."""
    command = [sys.executable, str(ROOT / "tools" / "serve_ohif.py"), "--port", str(free_port()), *options]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120, check=False)
    assert (ended.returncode, ended.stderr.count("\n"), word in ended.stderr) == (cli.EXIT_USAGE, 1, True), ended.stderr
    assert not list(tmp_path.iterdir())
