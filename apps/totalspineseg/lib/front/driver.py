"""``GET /logs/gpu``: what the GPU's driver says, within a time limit: one that hangs would keep everybody waiting."""

import subprocess
import threading
from typing import Annotated, Final

from fastapi import APIRouter, Depends, HTTPException, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User

from lib.front.statuses import UPSTREAM
from lib.infers.http import NOT_FOUND

PROGRAM: Final = "nvidia-smi"
SECONDS: Final = 20.0
"""A driver that has to wake up takes some."""


def router() -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.get("/logs/gpu")
    def gpu(user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))]) -> Response:
        """The driver's table."""
        return Response(driver_table(), media_type="text/plain")

    return routes


def driver_table() -> bytes:
    """What the driver's program prints.

    Raises:
        HTTPException: There is none, or it does not answer.
    """
    try:
        process = subprocess.Popen([PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError as error:
        raise HTTPException(NOT_FOUND, f"an NVIDIA driver with {PROGRAM} is required, got a machine without") from error
    try:
        table: bytes = process.communicate(timeout=SECONDS)[0]
    except subprocess.TimeoutExpired as error:
        process.kill()
        # Not waited for here: in the driver's hands it may not even be killed.
        threading.Thread(target=process.communicate, name="driver-end", daemon=True).start()
        raise HTTPException(
            UPSTREAM,
            f"an answer of {PROGRAM} within {SECONDS:g} s is required, got none; the driver may have to restart",
        ) from error
    return table
