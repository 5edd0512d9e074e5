"""``POST /train``: one training at a time, and the server's networks give it their memory."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Depends, HTTPException
from monailabel.config import settings
from monailabel.endpoints.train import run, run_model
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.utils import tasks

from lib.front.statuses import BUSY

UNFINISHED: Final = ("SUBMITTED", "RUNNING")
"""What the host calls a task that has not ended."""
KILLED_SECONDS: Final = 2.0
"""How long a training that was just stopped may take to be gone."""
LOOK_SECONDS: Final = 0.1


def router() -> APIRouter:
    """The routes; what they start, and what they answer, is the host's."""
    routes = APIRouter()
    admin = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
    starting = threading.Lock()

    # Not async: waiting for an inference to end holds nobody else up.
    @routes.post("/train/{model}")
    def train(
        model: str,
        user: Annotated[User, admin],
        params: Annotated[dict[str, Any] | None, Body()] = None,
        run_sync: bool = False,
        enqueue: bool = False,
    ) -> Any:
        """Free the networks, which the next request loads again, and start a training that can begin."""
        app_instance().check_training(model, params or {})
        with _start(starting, waits=enqueue):
            return run_model(model, params, run_sync, enqueue)

    @routes.post("/train/", include_in_schema=False)
    def train_all(
        user: Annotated[User, admin], params: Annotated[dict[str, Any] | None, Body()] = None, run_sync: bool = False
    ) -> Any:
        """The same for all trainers, one after the other."""
        with _start(starting, waits=True):
            return run(params, run_sync)

    return routes


@contextmanager
def _start(starting: threading.Lock, *, waits: bool) -> Iterator[None]:
    """Free the networks for a training that starts in this block; refuse it before, unless it ``waits`` for others.

    The host looks for its processes before it has started them, and would start two that come at once.

    Raises:
        HTTPException: Another training runs, or starts.
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
    """Whether a training of this server has not ended, or another program trains on these studies."""
    if any(task["status"] in UNFINISHED for task in tasks("train")):
        return True
    deadline = time.monotonic() + KILLED_SECONDS
    while app_instance().is_training():
        if time.monotonic() > deadline:
            return True
        time.sleep(LOOK_SECONDS)
    return False


def _busy() -> HTTPException:
    return HTTPException(
        BUSY, "no other training may run on these studies, got one that does; wait until it has ended, or stop it"
    )
