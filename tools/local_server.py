"""Run a server with its own models and train through it, for the demo and the benchmarks."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from server_process import APP, ROOT, StartError, server_process

from totalspineseg_server.nnunet.discovery import TRUST_FILE
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.registry.model_store import NAME, STARTER, ModelStore

if TYPE_CHECKING:
    from monailabel.client.client import MONAILabelClient

__all__ = ["APP", "ROOT", "UNFINISHED", "TrainingFailedError", "own_app", "serving", "train"]

POLL_S: Final = 2.0
LAST_LINES: Final = 5
UNFINISHED: Final = ("SUBMITTED", "RUNNING")
"""MONAI Label's status of a task that has not ended."""


class TrainingFailedError(RuntimeError):
    """A training ended without a verdict; the message has the last lines of the server."""


def own_app(folder: Path, weights: str = "") -> ModelStore:
    """Make an app folder whose models can be trained and published without changing those of the project.

    Args:
        folder: The new folder.
        weights: Weights that it serves at first, as for ``totalspineseg serve``.

    Returns:
        The models of the new folder: a copy of the weights, which is in use.
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
        for file in ("plans.json", "dataset.json", TRUST_FILE):
            if (model.path / file).is_file():
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
    """Run a server while this block runs, and yield its address.

    Args:
        studies: Folder of images.
        app: From ``own_app``.
        log: File for its output.
        device: "" for a GPU if there is one.
        runtime: "" for PyTorch.
        started: Called with the server's process id before it answers.
    """
    try:
        with server_process(studies, app, log, started=started, device=device, runtime=runtime) as (url, _):
            yield url
    except StartError as error:
        sys.exit(str(error))


def train(
    client: "MONAILabelClient", model: str, settings: Mapping[str, str], *, show: Callable[[str], None]
) -> dict[str, Any]:
    """Train through the server as a client does, until the task has ended.

    Args:
        client: A connected client.
        model: Name of the trainer.
        settings: Settings of the training, as texts.
        show: Called with lines of progress.

    Returns:
        The trainers' report at the end, and ``seconds``.

    Raises:
        TrainingFailedError: The training ended in an error, or was stopped.
    """
    start, last_line = time.monotonic(), ""
    client.train_start(model, dict(settings))
    while True:
        running = client.train_status(check_if_running=True)
        stats: dict[str, Any] = client.info()["train_stats"][model]
        done = f"epoch {stats.get('epoch', 0)} of {stats.get('total_epochs', '?')}"
        line = f"{done}, {stats.get('message') or 'training'}"
        if line != last_line:
            show(f"{line} ({time.monotonic() - start:.0f} s)")
            last_line = line
        if not running:
            task = client.train_status()
            if task.get("status") not in UNFINISHED:
                break
        time.sleep(POLL_S)
    if task.get("status") != "DONE":
        last = "\n".join(map(str, list(task.get("details", ()))[-LAST_LINES:]))
        raise TrainingFailedError(f"the training ended as {task.get('status')}:\n{last}")
    return {**client.info()["train_stats"][model], "seconds": round(time.monotonic() - start)}
