"""A port for another program, and its end."""

import signal
import socket
import subprocess
import sys

import pytest

from lib.processes import free_port, stop

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
