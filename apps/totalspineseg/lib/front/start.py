"""``/`` and ``/docs``: serve our page instead of the host's, which run scripts of other servers in this one's name."""

import html
from typing import Final

from fastapi import APIRouter, Response
from monailabel.interfaces.utils.app import app_instance

from lib.front.ohif import PAGES

PAGE: Final = "start.html"
PLACE: Final = "<!-- weights -->"
"""Mark in the page, replaced by the text about the weights in use."""


def router() -> APIRouter:
    """Return the routes."""
    routes = APIRouter()
    page = (PAGES / PAGE).read_text(encoding="utf-8")

    @routes.get("/", include_in_schema=False)
    @routes.get("/docs", include_in_schema=False)
    def start() -> Response:
        """Say what this server is, which weights it uses, and where to go on."""
        text = page.replace(PLACE, html.escape(app_instance().weights_text()))
        return Response(text, media_type="text/html")

    return routes
