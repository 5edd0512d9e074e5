"""Serve the lab's page (``/``) and a page about the server (``/docs``). MONAI Label's pages run scripts of other
servers."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fastapi import APIRouter, HTTPException, Request, Response
from monailabel.interfaces.utils.app import app_instance
from starlette.responses import FileResponse

from totalspineseg_server.front import front_messages
from totalspineseg_server.front.guard import HEADER, HTML
from totalspineseg_server.front.ohif import PAGES
from totalspineseg_server.front.revalidated import revalidated, tag_of
from totalspineseg_server.infers.http import NOT_FOUND
from totalspineseg_server.places import SHIPPED

ABOUT: Final = "start.html"
LAB: Final = "lab"
INDEX: Final = "index.html"
PLACE: Final = "<!-- weights -->"
"""Mark in the page, replaced by the text about the weights in use."""
VIEWER: Final = SHIPPED / "npm" / "node_modules" / "@niivue" / "niivue" / "dist" / "index.js"
"""The viewer of the review, which ``make setup`` installs and ``make wheel`` packs."""
TYPES: Final = {".html": HTML, ".css": "text/css", ".js": "text/javascript"}
LAB_POLICY: Final = (
    "default-src 'self'; img-src 'self' data: blob:; connect-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
)
"""Policy of the lab's page: only its own scripts run. The viewer reads its font, and images that the page has fetched,
from addresses of the page itself.
"""


def router() -> APIRouter:
    """Return the routes."""
    routes = APIRouter()
    about = (PAGES / ABOUT).read_text(encoding="utf-8")
    files = _files()

    def described() -> Response:
        text = about.replace(PLACE, html.escape(app_instance().weights_text()))
        return Response(text, media_type=HTML)

    @routes.get("/", include_in_schema=False)
    def start(call: Request) -> Response:
        """Show the lab's page to a browser; other programs get the page about the server, as in earlier versions."""
        if HTML in call.headers.get("accept", ""):
            return _sent(INDEX, *files[INDEX], call)
        return described()

    @routes.get("/docs", include_in_schema=False)
    def get_about() -> Response:
        """Say what this server is and which weights it uses, with links to its other pages."""
        return described()

    @routes.get("/lab/niivue.js", include_in_schema=False)
    def viewer() -> Response:
        """Return the viewer of the review."""
        if not VIEWER.is_file():
            raise HTTPException(NOT_FOUND, front_messages.NO_VIEWER)
        return FileResponse(VIEWER, media_type=TYPES[".js"], headers={"cache-control": "private, max-age=3600"})

    @routes.get("/lab/{name}", include_in_schema=False)
    def file(name: str, call: Request) -> Response:
        """Return a file of the lab's page."""
        if name not in files:
            raise HTTPException(NOT_FOUND, front_messages.NO_FILE.format(name=name[:80]))
        return _sent(name, *files[name], call)

    return routes


def _files() -> Mapping[str, tuple[bytes, str]]:
    """Read the files of the page once, with their tags: no name in a request reaches the disk."""
    files = {path.name: path.read_bytes() for path in (PAGES / LAB).iterdir() if path.suffix in TYPES}
    return {name: (content, tag_of(content)) for name, content in files.items()}


def _sent(name: str, content: bytes, tag: str, call: Request) -> Response:
    response = revalidated(call, tag, lambda: Response(content, media_type=TYPES[Path(name).suffix]))
    if name == INDEX:
        # At the same address a program gets another answer.
        response.headers.update({HEADER: LAB_POLICY, "vary": "accept"})
    return response
