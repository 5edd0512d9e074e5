"""The host's routes to the studies and other slow things, each in a thread.

The host's handlers are coroutines that never give way: while one waits for a PACS, nobody else would be answered.
"""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import APIRouter
from monailabel.endpoints import batch_infer, datastore, info, scoring, session

SLOW: Final = (info.router, datastore.router, batch_infer.router, scoring.router, session.router)
"""What asks the datastore, which may lie on another machine, or reads and removes files."""


def router() -> APIRouter:
    """The routes; parameters, roles and answers are the host's."""
    routes = APIRouter()
    for route in (route for host in SLOW for route in host.routes):
        routes.add_api_route(route.path, in_a_thread(route.endpoint), methods=sorted(route.methods))
    return routes


def in_a_thread(handler: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """A coroutine function as a plain one with the same parameters, which the framework runs in a thread."""

    def run(**arguments: Any) -> Any:
        return asyncio.run(handler(**arguments))

    run.__signature__ = inspect.signature(handler)  # type: ignore[attr-defined]
    return run
