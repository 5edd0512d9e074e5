"""Run the server as a process on a free loopback port, for tools and tests: start it, wait for it, stop it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import requests

ROOT: Final = Path(__file__).resolve().parents[1]
APP: Final = ROOT / "apps" / "totalspineseg"
# Modules that import this one need the package, too.
if str(APP) not in sys.path:
    sys.path.insert(0, str(APP))

from totalspineseg_server.processes import free_port, stop, tied  # noqa: E402

START_SECONDS: Final = 300
"""Longest time for a start, seconds. The first start after an installation compiles every module; later ones take 4 s
on a quiet machine."""
LOG_TAIL: Final = 3000
RUN: Final = """
import json, sys
from pathlib import Path
from totalspineseg_server.server import serve
options = json.loads(sys.argv[1])
serve(options.pop("studies"), app_dir=Path(options.pop("app")), demo=False, **options)
"""


class StartError(RuntimeError):
    """The server ended or did not answer; the message has the end of its log."""


@contextmanager
def server_process(
    studies: str | Path,
    app: Path,
    log: Path,
    *,
    modules: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    started: Callable[[int], None] = lambda pid: None,
    **options: object,
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Run a server while this block runs, and stop it at the end with the processes that it started.

    A program that uses this should call ``processes.unwind_on_signals`` first; otherwise a signal would end it before
    the server is stopped.

    Args:
        studies: Folder of images, or a DICOMweb address.
        app: Folder of the app, which is the working folder of the process.
        log: File for its output.
        modules: Folders of other modules that the app imports.
        environment: Variables to add to those of this process.
        started: Called with the server's process id before it answers.
        options: Other options of ``server.serve``.

    Returns:
        The server's address and its process.

    Raises:
        StartError: The server ended, or never answered.
    """
    port = free_port()
    arguments = json.dumps({"studies": str(studies), "app": str(app), "port": port, **options})
    paths = os.pathsep.join(map(str, (APP, *modules)))
    with log.open("wb") as output:
        process = subprocess.Popen(
            tied([sys.executable, "-c", RUN, arguments]),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
            cwd=app,
        )
        try:
            started(process.pid)
            url = f"http://127.0.0.1:{port}"
            _wait(url, process, log)
            yield url, process
        finally:
            stop(process)


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StartError(f"the server ended:\n{_end(log)}")
        try:
            # Any answer will do, even a refusal because the client is not signed in.
            requests.get(f"{url}/info/", timeout=30)
        except requests.RequestException:
            time.sleep(0.1)
        else:
            return
    raise StartError(f"the server did not answer within {START_SECONDS} s:\n{_end(log)}")


def _end(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:]
