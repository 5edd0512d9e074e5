"""Tests of finding a port for another program, and of ending the program."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from totalspineseg_server import processes
from totalspineseg_server.processes import PARENT, end_with_parent, free_port, parent_is_gone, stop

pytestmark = pytest.mark.slow

DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
WILLING = "import signal; print(flush=True); signal.pause()"


@pytest.mark.parametrize(
    ("program", "seconds", "ended_by"),
    [(WILLING, 60, signal.SIGTERM), (DEAF, 0.2, signal.SIGKILL)],
    ids=["willing", "deaf"],
)
def test_a_process_ends(program: str, seconds: float, ended_by: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        stop(process, seconds=seconds)
        assert process.returncode == -ended_by
        stop(process)


def test_a_free_port_can_be_taken() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))
        server.listen()


CHILD = """
import sys, time
from totalspineseg_server.processes import end_with_parent, parent_is_gone
end_with_parent(grace_seconds=float(sys.argv[1]))
print("alive", flush=True)
while not parent_is_gone():
    time.sleep(0.02)
time.sleep(float(sys.argv[2]))
open(sys.argv[3], "w").write("stored")
time.sleep(1000)
"""
MOTHER = """
import subprocess, sys, time
from totalspineseg_server.processes import become_parent, end_with_parent, parent_is_gone
become_parent()
end_with_parent(grace_seconds=0)
assert not parent_is_gone()
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.PIPE)
print(child.stdout.readline().decode().strip(), child.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize(("needs", "stores"), [("0", True), ("60", False)], ids=["in time", "too long"])
def test_a_process_ends_soon_after_a_parent_that_was_killed(tmp_path: Path, needs: str, stores: bool) -> None:
    """A training outlived its server and kept the next one from starting."""
    reported = tmp_path / "told"
    lib = str(Path(processes.__file__).parents[1])
    command = [sys.executable, "-c", MOTHER, CHILD, "1", needs, str(reported)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": lib}) as mother:
        assert mother.stdout is not None
        word, pid = mother.stdout.readline().split()
        time.sleep(1.2)  # longer than the grace: it is not what ends a child whose parent lives
        assert (word, is_alive(int(pid))) == (b"alive", True)
        mother.kill()
    deadline = time.monotonic() + 20
    while is_alive(int(pid)):
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.05)
    assert reported.exists() == stores


TYING = """
import subprocess, sys, time
from totalspineseg_server.processes import tied
child = subprocess.Popen(tied(sys.argv[1:]), stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(1000)
"""


def test_a_tied_program_ends_with_whoever_started_it() -> None:
    """After kill -9 of `make serve-ohif`, Orthanc kept its folder locked, and the next one could not start."""
    command = [sys.executable, "-c", TYING, sys.executable, "-c", WILLING]
    lib = str(Path(processes.__file__).parents[1])
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": lib}) as mother:
        assert mother.stdout is not None
        pid = int(mother.stdout.readline())
        assert is_alive(pid)
        mother.kill()
    deadline = time.monotonic() + 20
    while is_alive(pid):
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a process that has ended but was not collected yet does not."""
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def test_a_process_without_a_parent_of_that_kind_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = processes.threading.active_count()
    monkeypatch.delenv(PARENT, raising=False)
    assert not parent_is_gone()
    end_with_parent(grace_seconds=0)
    assert processes.threading.active_count() == threads
