"""Prepare MONAI Label's application to run behind the front, and run its routes in threads.

Its handlers are coroutines that never yield: while one waits for a PACS, no other request would be answered.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from functools import partial
from threading import Thread
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.endpoints import batch_infer, datastore, info, login, scoring, session, train
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import background_executors, processes, tasks
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from totalspineseg_server.front import failures as errors
from totalspineseg_server.front.guard import Known

logger = logging.getLogger(__name__)

BACKGROUND_METHODS: Final = ("batch_infer", "train", "scoring")
UNFINISHED: Final = ("SUBMITTED", "RUNNING")
"""MONAI Label's statuses for a task that has not ended."""


def host_application() -> FastAPI:
    """Return MONAI Label's application, without its permission for web pages of any origin, and with our answers to
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
    Thread(target=partial(app.inbox.interpret_waiting, again=False), name="waiting-labels", daemon=True).start()


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
    if not await app_instance().inbox.ongoing.finish(seconds):
        logger.error("A submission was not finished %g s after the server was stopped. Submit it again.", seconds)


def allowed_origins() -> Collection[str]:
    """Return the web origins that may use the server, from MONAI Label's own setting; none by default."""
    return tuple(str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS or ())


SLOW: Final = (info, datastore, batch_infer, scoring, session, train)
"""Modules that ask the datastore (perhaps on another machine), read or remove files, or end programs."""


def router(answered: Iterable[BaseRoute] = ()) -> APIRouter:
    """Return the routes; their parameters, roles and answers are MONAI Label's.

    Args:
        answered: Our own routes, which answer instead of MONAI Label's.
    """
    ours = {(route.path, method) for route in answered if isinstance(route, APIRoute) for method in route.methods or ()}
    routes = APIRouter()
    # MONAI Label asks the identity server in its own handler as well.
    modules = (*SLOW, login) if settings.MONAI_LABEL_AUTH_ENABLE else SLOW
    for route in (route for module in modules for route in module.router.routes):
        methods = sorted(method for method in route.methods if (route.path, method) not in ours)
        if methods:
            routes.add_api_route(
                route.path,
                in_a_thread(route.endpoint),
                methods=methods,
                summary=route.summary,
                tags=route.tags,
                response_model=route.response_model,
                include_in_schema=route.include_in_schema,
            )
    return routes


def in_a_thread(handler: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """Return a coroutine function as a plain one with the same parameters, which the framework runs in a thread."""

    def run(**arguments: Any) -> Any:
        return asyncio.run(handler(**arguments))

    run.__signature__ = inspect.signature(handler)  # type: ignore[attr-defined]
    # The names of operations are made from it.
    run.__name__ = handler.__name__
    return run
