"""``/`` and ``/docs``: a page of ours in place of the host's, which run scripts of other servers in this one's name."""

from typing import Final

from fastapi import APIRouter, Response

from lib.front.ohif import PAGES

PAGE: Final = "start.html"


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter()
    page = (PAGES / PAGE).read_bytes()

    @routes.get("/", include_in_schema=False)
    @routes.get("/docs", include_in_schema=False)
    def start() -> Response:
        """What this server is, and where to go on."""
        return Response(page, media_type="text/html")

    return routes
