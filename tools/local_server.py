"""The real server on a free loopback port with models of its own, and waiting for it: what demo and benches share."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import requests

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "apps" / "totalspineseg"
if str(APP) not in sys.path:
    sys.path.insert(0, str(APP))

from monailabel.client.client import MONAILabelClient  # noqa: E402

from lib.nnunet.model_folder import ModelFolder  # noqa: E402
from lib.registry.store import NAME, STARTER, ModelStore  # noqa: E402

START_S: Final = 300
"""The first start after an installation compiles every module."""
POLL_S: Final = 2.0
UNFINISHED: Final = ("SUBMITTED", "RUNNING")
"""What the host calls a task that has not ended."""
RUN: Final = """
import sys
from pathlib import Path
from lib import server
studies, port, app_dir, device, runtime = sys.argv[1:6]
conf = {name: value for name, value in {"device": device, "runtime": runtime}.items() if value}
server.configure(studies, host="127.0.0.1", port=int(port), conf=conf, app_dir=Path(app_dir))
import uvicorn
uvicorn.run(server.create_app(), host="127.0.0.1", port=int(port), log_level="warning")
"""


def own_app(folder: Path, weights: str = "") -> ModelStore:
    """An app folder whose models can be trained and published without touching the project's.

    Args:
        folder: To be made.
        weights: What it serves at first, as for ``totalspineseg serve``.

    Returns:
        Its models: a copy of the weights, in use.
    """
    store = ModelStore(folder / "model")
    store.model_dir.mkdir(parents=True)
    (folder / "main.py").symlink_to(APP / "main.py")
    source = ModelStore(APP / "model", weights=weights)
    for step in (1, 2):
        choice = source.resolve(step)
        model = ModelFolder.open(choice.root, step=step)
        name = choice.name if NAME.fullmatch(choice.name) else f"given-{step}"
        root = store.model_dir / STARTER if name == STARTER else store.versions_dir / name
        target = root / f"step{step}" / model.path.name
        checkpoint = target / model.checkpoint.relative_to(model.path)
        checkpoint.parent.mkdir(parents=True)
        for file in ("plans.json", "dataset.json"):
            shutil.copyfile(model.path / file, target / file)
        shutil.copyfile(model.checkpoint, checkpoint)
        if name != STARTER:
            store.activate(name, steps=[step])
    return store


@contextmanager
def serving(
    studies: Path,
    app: Path,
    log: Path,
    *,
    device: str = "",
    runtime: str = "",
    started: Callable[[int], None] = lambda pid: None,
) -> Iterator[str]:
    """The server's address; it is stopped at the end.

    Args:
        studies: Folder of images.
        app: From ``own_app``.
        log: Where its output goes.
        device: "" for a GPU if there is one.
        runtime: "" for PyTorch.
        started: Told the server's process id before it answers.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", RUN, str(studies), str(port), str(app), device, runtime]
    env = {**os.environ, "PYTHONPATH": str(APP)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env, cwd=app)
        started(process.pid)
        try:
            _wait(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=60)


def train(
    client: MONAILabelClient, model: str, settings: Mapping[str, str], *, show: Callable[[str], None]
) -> dict[str, Any]:
    """Train through the server as a client does, until the task has ended.

    Args:
        client: Connected.
        model: Which trainer.
        settings: As texts.
        show: Told the progress in words.

    Returns:
        What the trainers report at the end, and ``seconds``.
    """
    start, shown = time.monotonic(), ""
    client.train_start(model, dict(settings))
    while True:
        running = client.train_status(check_if_running=True)
        stats: dict[str, Any] = client.info()["train_stats"][model]
        done = f"epoch {stats.get('epoch', 0)} of {stats.get('total_epochs', '?')}"
        line = f"{done}, {stats.get('message') or 'training'}"
        if line != shown:
            show(f"{line} ({time.monotonic() - start:.0f} s)")
            shown = line
        if not running:
            task = client.train_status()
            if task.get("status") not in UNFINISHED:
                break
        time.sleep(POLL_S)
    if task.get("status") != "DONE":
        sys.exit(f"the training ended as {task.get('status')}: {list(task.get('details', ()))[-5:]}")
    return {**client.info()["train_stats"][model], "seconds": round(time.monotonic() - start)}


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"the server ended:\n{log.read_text()[-3000:]}")
        try:
            requests.get(f"{url}/info/", timeout=30).raise_for_status()
        except requests.RequestException:
            time.sleep(0.3)
        else:
            return
    sys.exit(f"the server did not answer within {START_S} s:\n{log.read_text()[-3000:]}")
