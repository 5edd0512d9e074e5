"""Prepare MONAI Label's application to run behind the front."""

import logging
from collections.abc import Collection, Mapping
from functools import partial
from threading import Thread
from typing import Any, Final

from fastapi import FastAPI
from monailabel.config import settings
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import background_executors, processes, tasks
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from totalspineseg_server.front import failures as errors
from totalspineseg_server.front.guard import Known

logger = logging.getLogger(__name__)

BACKGROUND_METHODS: Final = ("batch_infer", "train", "scoring")
UNFINISHED: Final = ("SUBMITTED", "RUNNING")
"""MONAI Label's statuses for a task that has not ended."""


def host_application() -> FastAPI:
    """Return MONAI Label's application, without its permission for web pages of any origin and with our answers to
    failures."""
    from monailabel import app as module

    app: FastAPI = module.app
    kinds: list[tuple[object, Middleware]] = [(entry.cls, entry) for entry in app.user_middleware]
    app.user_middleware = [entry for kind, entry in kinds if kind is not CORSMiddleware]
    errors.install(app)
    return app


def known() -> Known:
    """Return the names of everything that the running app offers."""
    app = app_instance()
    return Known(
        models=tuple(app._infers),
        trainers=tuple(app._trainers),
        scorers=tuple(app._scoring_methods),
        strategies=tuple(app._strategies),
        on_server=str(settings.MONAI_LABEL_STUDIES).startswith(("http://", "https://")),
    )


def running_task(method: str) -> Mapping[str, Any] | None:
    """Return the task of a background method that has not ended, or None."""
    return next((task for task in tasks(method) if task["status"] in UNFINISHED), None)


def warm_up() -> None:
    """Load the networks and read waiting labels while the server already answers requests."""
    app = app_instance()
    Thread(target=app.warm_up, name="warm-up", daemon=True).start()
    Thread(target=partial(app.interpret_waiting, again=False), name="waiting-labels", daemon=True).start()


def stop_background_tasks() -> None:
    """End the processes that MONAI Label started for batch inference, training or scoring: they would outlive the
    server.

    Queued tasks are canceled first: otherwise the next one would start when the running one ends.
    """
    for method in BACKGROUND_METHODS:
        if executor := background_executors.pop(method, None):
            executor.shutdown(wait=False, cancel_futures=True)
        if processes(method):
            AsyncTask.stop(method)


async def finish_submissions(seconds: float) -> None:
    """Wait at most ``seconds`` for submissions that have arrived completely, although their senders get no answer
    now."""
    if not await app_instance().submissions.finish(seconds):
        logger.error("A submission was not finished %g s after the server was stopped. Submit it again.", seconds)


def allowed_origins() -> Collection[str]:
    """Return the web origins that may use the server, from MONAI Label's own setting; none by default."""
    return tuple(str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS or ())
