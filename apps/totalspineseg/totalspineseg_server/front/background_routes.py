"""Serve what MONAI Label runs in the background: trainings, scorings and batch inferences.

One training runs at a time, with the memory of the server's networks free for it. The others say how far they are.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Depends, HTTPException
from monailabel.config import settings
from monailabel.endpoints import batch_infer, scoring
from monailabel.endpoints.train import run, run_model
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from totalspineseg_server.front import front_messages
from totalspineseg_server.front.host import running_task
from totalspineseg_server.infers.http import BUSY

KILLED_SECONDS: Final = 2.0
"""Longest time that a stopped training may take to end."""
LOOK_SECONDS: Final = 0.1
PROGRESS: Final = "progress"
"""Field for the progress as stored. It is needed because the end of a task's output may be lost, and a stopped task
prints nothing.
"""


def router() -> APIRouter:
    """Return the routes; MONAI Label starts the task and answers, with 404 until one was started."""
    routes = APIRouter()
    admin = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
    reader = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
    starting = threading.Lock()

    # This is not async, so that waiting for an inference to end blocks no other request.
    @routes.post("/train/{model}")
    def train(
        model: str,
        user: Annotated[User, admin],
        params: Annotated[dict[str, Any] | None, Body()] = None,
        run_sync: bool = False,
        enqueue: bool = False,
    ) -> Any:
        """Start a training if it can begin. The networks are released; the next request loads them again."""
        app_instance().check_training(model, params or {})
        with _start(starting, waits=enqueue):
            return run_model(model, params, run_sync, enqueue)

    @routes.post("/train/", include_in_schema=False)
    def train_all(
        user: Annotated[User, admin], params: Annotated[dict[str, Any] | None, Body()] = None, run_sync: bool = False
    ) -> Any:
        """Run all trainers, one after the other."""
        with _start(starting, waits=True):
            return run(params, run_sync)

    @routes.get("/scoring/")
    def scoring_status(user: Annotated[User, reader], all: bool = False, check_if_running: bool = False) -> Any:
        """Return the last scoring, and how many images have a score by the weights in use."""
        return _with_progress(scoring.status(all, check_if_running))

    @routes.get("/batch/infer")
    def batch_status(user: Annotated[User, reader], all: bool = False, check_if_running: bool = False) -> Any:
        """Return the last batch inference, and how many images have a score by the weights in use."""
        return _with_progress(batch_infer.status(all, check_if_running))

    return routes


@contextmanager
def _start(starting: threading.Lock, *, waits: bool) -> Iterator[None]:
    """Release the networks for a training that starts in this block. Unless it ``waits``, refuse it if another one is
    running.

    MONAI Label checks for a running process before it starts its own, so two requests at once would start two
    trainings.

    Raises:
        HTTPException: Another training is running or starting.
    """
    if not starting.acquire(blocking=waits):
        raise _busy()
    try:
        if not waits and _trains():
            raise _busy()
        app_instance().free_networks()
        yield
    finally:
        starting.release()


def _trains() -> bool:
    """Return whether a training on these studies is running, started by this server or by another program."""
    if running_task("train") is not None:
        return True
    deadline = time.monotonic() + KILLED_SECONDS
    while app_instance().is_training():
        if time.monotonic() > deadline:
            return True
        time.sleep(LOOK_SECONDS)
    return False


def _busy() -> HTTPException:
    return HTTPException(BUSY, front_messages.TRAINING_RUNS)


def _with_progress(task: Any) -> Any:
    return {**task, PROGRESS: app_instance().scoring_progress()} if isinstance(task, dict) else task
