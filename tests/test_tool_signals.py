"""Tests that a tool that a signal ends leaves no server and no folder behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from server_process import APP, ROOT

from test_processes import is_alive
from totalspineseg_server.processes import ENDING, SIGNALED

TOOLS = ROOT / "tools"
TOOL = """
import signal, sys, tempfile
from pathlib import Path
import server_process
from totalspineseg_server.processes import ENDING, unwind_on_signals

for number in ENDING:  # A shell without job control ignores one, nohup another.
    signal.signal(number, signal.SIG_DFL)
server_process.RUN = "import time; time.sleep(1000)"
unwind_on_signals()
with tempfile.TemporaryDirectory(dir=sys.argv[1]) as name:
    folder, told = Path(name), lambda pid: print(pid, flush=True)
    with server_process.server_process(folder, folder, folder / "log", started=told):
        pass
"""
SECONDS = 60


@pytest.mark.slow
@pytest.mark.parametrize("number", [*ENDING, signal.SIGKILL], ids=lambda number: number.name)
def test_a_tool_takes_its_server_along(tmp_path: Path, number: signal.Signals) -> None:
    """After SIGTERM of a benchmark its server kept running, and the temporary folder stayed."""
    path = os.pathsep.join(map(str, (TOOLS, APP)))
    command = [sys.executable, "-c", TOOL, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": path}
    # No signal of this test may reach the process that runs it.
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True) as tool:
        assert tool.stdout is not None
        server = int(tool.stdout.readline())
        assert is_alive(server)
        tool.send_signal(number)
        tool.wait(SECONDS)
    deadline = time.monotonic() + SECONDS
    while is_alive(server):
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.05)
    if number != signal.SIGKILL:
        assert tool.returncode == SIGNALED + number
        assert list(tmp_path.iterdir()) == []


TOOLS_WITH_A_FOLDER = sorted(
    p.name for p in TOOLS.glob("*.py") if "TemporaryDirectory(" in p.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", TOOLS_WITH_A_FOLDER)
def test_every_tool_with_a_folder_of_its_own_does_so(name: str) -> None:
    _, begin = (TOOLS / name).read_text(encoding="utf-8").split('if __name__ == "__main__":\n')
    assert begin.splitlines()[0].strip() == "unwind_on_signals()"
