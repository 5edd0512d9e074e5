"""Run each of MONAI Label's routes to the studies, and other slow ones, in a thread.

MONAI Label's handlers are coroutines that never yield: while one waits for a PACS, no other request would be answered.
"""

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final

from fastapi import APIRouter
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.endpoints import batch_infer, datastore, info, login, scoring, session, train
from starlette.routing import BaseRoute

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
