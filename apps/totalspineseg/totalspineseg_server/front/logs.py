"""Serve ``GET /logs/``, the end of the log, and ``GET /logs/gpu``, the report of the GPU's driver.

MONAI Label's own page of the log runs scripts of other servers. The driver has a time limit, because it may hang.
"""

import subprocess
import threading
from collections import deque
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Depends, HTTPException, Query, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User

from totalspineseg_server.front import front_messages
from totalspineseg_server.front.failures import without_folders
from totalspineseg_server.infers.http import NOT_FOUND, UPSTREAM

LINES: Final = 300
MAX_LINES: Final = 10_000
"""Largest number of lines: a few megabytes. A longer log is better read from its file."""
PROGRAM: Final = "nvidia-smi"
SECONDS: Final = 20.0
"""Longest time that the driver may take to answer; it may have to wake up."""


def router() -> APIRouter:
    """Return the routes."""
    routes = APIRouter()

    @routes.get("/logs/")
    def logs(
        user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))],
        lines: Annotated[int, Query(ge=1, le=MAX_LINES)] = LINES,
        refresh: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        """Return the last ``lines`` of the log; a browser asks again after ``refresh`` seconds, unless that is 0."""
        file = Path(settings.MONAI_LABEL_APP_DIR) / "logs" / "app.log"
        if not file.is_file():
            raise HTTPException(NOT_FOUND, front_messages.NO_LOG)
        with file.open(encoding="utf-8", errors="replace") as content:
            end = "".join(deque(content, lines))
        headers = {"refresh": str(refresh)} if refresh else {}
        return Response(without_folders(end), media_type="text/plain", headers=headers)

    @routes.get("/logs/gpu")
    def gpu(user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))]) -> Response:
        """Return the driver's table."""
        return Response(driver_table(), media_type="text/plain")

    return routes


def driver_table() -> bytes:
    """Return the output of the driver's program.

    Raises:
        HTTPException: There is no driver, or it does not answer.
    """
    try:
        process = subprocess.Popen([PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError as error:
        raise HTTPException(NOT_FOUND, front_messages.NO_DRIVER.format(program=PROGRAM)) from error
    try:
        table: bytes = process.communicate(timeout=SECONDS)[0]
    except subprocess.TimeoutExpired as error:
        process.kill()
        # Do not wait here: a process that hangs in the driver may not end even when killed.
        threading.Thread(target=process.communicate, name="driver-end", daemon=True).start()
        raise HTTPException(
            UPSTREAM,
            front_messages.DRIVER_SILENT.format(program=PROGRAM, seconds=SECONDS),
        ) from error
    return table
