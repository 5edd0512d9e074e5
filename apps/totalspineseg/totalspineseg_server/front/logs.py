"""Serve ``GET /logs/``: the end of the log as plain text. MONAI Label's page runs scripts of other servers."""

from collections import deque
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Depends, HTTPException, Query, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User

from totalspineseg_server.front.failures import without_folders
from totalspineseg_server.infers.http import NOT_FOUND

LINES: Final = 300
MAX_LINES: Final = 10_000
"""Largest number of lines: a few megabytes. A longer log is better read from its file."""


def router() -> APIRouter:
    """Return the route."""
    routes = APIRouter()

    @routes.get("/logs/")
    def logs(
        user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))],
        lines: Annotated[int, Query(ge=1, le=MAX_LINES)] = LINES,
        refresh: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        """Return the last ``lines`` of the log; a browser asks again after ``refresh`` seconds, unless 0."""
        file = Path(settings.MONAI_LABEL_APP_DIR) / "logs" / "app.log"
        if not file.is_file():
            raise HTTPException(NOT_FOUND, "This server writes no log file. Look at its terminal output.")
        with file.open(encoding="utf-8", errors="replace") as content:
            end = "".join(deque(content, lines))
        headers = {"refresh": str(refresh)} if refresh else {}
        return Response(without_folders(end), media_type="text/plain", headers=headers)

    return routes
