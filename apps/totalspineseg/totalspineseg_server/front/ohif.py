"""Serve ``/ohif/``: the viewer that comes with MONAI Label, changed so that it can submit."""

import html
import json
import mimetypes
from functools import cache
from pathlib import Path
from typing import Annotated, Final

import monailabel
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance
from starlette.staticfiles import StaticFiles

from totalspineseg_server.anatomy import BY_CODE, CANAL, CORD, NAME_OF, SACRUM, STRUCTURES
from totalspineseg_server.front import front_messages
from totalspineseg_server.front.bundle import Bundle, read_bundle
from totalspineseg_server.front.failures import without_folders
from totalspineseg_server.front.guard import POLICY
from totalspineseg_server.front.revalidated import ASK_EACH_TIME, revalidated, tag_of
from totalspineseg_server.infers.http import NOT_FOUND
from totalspineseg_server.numbering.evidence_weights import ORDER
from totalspineseg_server.segments import VERTEBRAE_NAME

OHIF_FOLDER: Final = Path(str(monailabel.__file__)).parent / "endpoints" / "static" / "ohif"
SCRIPT: Final = "totalspineseg.js"
PAGES: Final = Path(__file__).parent / "pages"
COLORS_MARK: Final = "/*COLORS*/{}"
ORDER_MARK: Final = "/*ORDER*/[]"
HEAD_END: Final = "</head>"
BODY: Final = "<body>"


def router() -> APIRouter:
    """Return the routes."""
    routes = APIRouter()
    bundle = read_bundle(OHIF_FOLDER)
    pages = {"index.html": _index(bundle), SCRIPT: _script(), **bundle.changed}
    # The hash in the bundle's file names is that of the original file: the browser must ask each time.
    tags = {name: tag_of(content) for name, content in pages.items()}
    files = StaticFiles(directory=OHIF_FOLDER)

    @routes.get("/ohif/{path:path}", include_in_schema=False)
    async def viewer(
        path: str, request: Request, user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]
    ) -> Response:
        """Return a file of the viewer; addresses of the viewer that are not files get its page."""
        name = path if Path(path).suffix else "index.html"
        if name in pages:
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            page = Response(pages[name], media_type=kind, headers=POLICY)
            return revalidated(request, tags[name], lambda: page)
        response = await files.get_response(name, request.scope)
        response.headers.update(ASK_EACH_TIME)
        return response

    @routes.get("/submissions/{instance}")
    def submission(
        instance: str, user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]
    ) -> Response:
        """Return the outcome of a segmentation that was stored in the PACS."""
        outcome = app_instance().outcomes.of(instance)
        if outcome is None:
            raise HTTPException(NOT_FOUND, front_messages.NOT_STORED_HERE)
        return Response(without_folders(json.dumps(outcome.as_json())), media_type="application/json")

    return routes


def _index(bundle: Bundle) -> bytes:
    """Return the page with our script, and with a warning if the bundle is another version."""
    page = (bundle.folder / "index.html").read_text(encoding="utf-8")
    warning = ""
    if bundle.missing or page.count(HEAD_END) != 1 or page.count(BODY) != 1:
        sentence = front_messages.OTHER_VIEWER.format(missing=", ".join(bundle.missing) or "be extended")
        warning = (
            '<div id="totalspineseg-missing" style="position:fixed;top:0;left:0;right:0;z-index:99999;'
            f'background:#b00020;color:#fff;padding:8px;font:16px sans-serif">{html.escape(sentence)}</div>'
        )
        if page.count(BODY) != 1:
            return f"<!doctype html><html><body>{warning}</body></html>".encode()
    page = page.replace(HEAD_END, f'<script src="/ohif/{SCRIPT}"></script>{HEAD_END}')
    return page.replace(BODY, BODY + warning).encode()


@cache
def _script() -> bytes:
    """Return our script with the colors of the structures, by name in lower case, and with their order."""
    text = (PAGES / SCRIPT).read_text(encoding="utf-8")
    return text.replace(COLORS_MARK, json.dumps(colors())).replace(ORDER_MARK, json.dumps(order())).encode()


def order() -> list[str]:
    """Return the names of the structures as viewers list them: the column from top to bottom, then cord and canal."""
    column = sorted(ORDER, key=ORDER.__getitem__)
    return [*(NAME_OF[code] for code in column), VERTEBRAE_NAME, NAME_OF[CORD], NAME_OF[CANAL]]


def colors() -> dict[str, tuple[int, int, int]]:
    """Return sRGB colors by name in lower case, from the label table."""
    table = {structure.name.lower(): structure.color for structure in STRUCTURES}
    return {**table, VERTEBRAE_NAME: BY_CODE[SACRUM].color}
