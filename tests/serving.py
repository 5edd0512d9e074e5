"""Starts a real server process on a free loopback port, for tests."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from lib.volume_io import write_volume
from phantom import RAS, image_of, lumbar_codes, sagittal_image

ROOT = Path(__file__).parents[1]
APP = ROOT / "apps" / "totalspineseg"
START_SECONDS = 240
"""Importing the host takes 4 s with byte code, a minute without or on a busy machine."""
RUN = """
import sys
from pathlib import Path
from lib import server
studies, port, app_dir, signals = sys.argv[1:5]
server.configure(studies, host="127.0.0.1", port=int(port), conf={"signals": signals}, app_dir=Path(app_dir))
import uvicorn
app = server.create_app(max_upload_mb=8, hosts=server.LOOPBACK)
uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="info")
"""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: Its address.
        studies: Its studies folder.
        signals: Files here make its predictors fail ("no-weights") or slow ("slow" holds seconds).
        log: What it printed.
    """

    url: str
    studies: Path
    signals: Path
    log: Path
    process: "subprocess.Popen[bytes]"


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_server(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server with the real app and predictors that read the phantom's codes."""
    studies, signals, app = folder / "studies", folder / "signals", folder / "app"
    for path in (studies, signals, app):
        path.mkdir(parents=True, exist_ok=True)
    (app / "main.py").symlink_to(ROOT / "tests" / "serving_app" / "main.py")
    port = free_port()
    log = folder / "server.log"
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(APP), str(ROOT / "tests")]),
        **(environment or {}),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(studies), str(port), str(app), str(signals)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=folder,
        )
        server = Server(f"http://127.0.0.1:{port}", studies, signals, log, process)
        try:
            wait_until_up(server)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def studies_server(folder: Path) -> Iterator[Server]:
    """A server with three phantoms to label, and one beside the studies that nobody may reach."""
    (folder / "studies").mkdir()
    for name in ("a-sagittal", "b-next"):
        write_volume(folder / "studies" / f"{name}.nii.gz", *sagittal_image())
    write_volume(folder / "studies" / "z-last.nrrd", image_of(lumbar_codes()), RAS)
    write_volume(folder / "secret.nii.gz", image_of(lumbar_codes()), RAS)
    with running_server(folder) as running:
        yield running


def wait_until_up(server: Server) -> None:
    """Wait for the first answer.

    Raises:
        RuntimeError: The server ended or never answered.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended: {server.log.read_text()[-3000:]}")
        try:
            # Any answer will do: with authentication on it is a refusal.
            requests.get(f"{server.url}/info/", timeout=5)
        except requests.ConnectionError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"the server did not answer: {server.log.read_text()[-3000:]}")
