"""``GET /logs/gpu``: return the report of the GPU's driver, within a time limit, because a driver may hang."""

import subprocess
import threading
from typing import Annotated, Final

from fastapi import APIRouter, Depends, HTTPException, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User

from totalspineseg_server.infers.http import NOT_FOUND, UPSTREAM

PROGRAM: Final = "nvidia-smi"
SECONDS: Final = 20.0
"""Longest time that the driver may take to answer; it may have to wake up."""


def router() -> APIRouter:
    """Return the route."""
    routes = APIRouter()

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
        raise HTTPException(
            NOT_FOUND, f"This machine has no NVIDIA driver ({PROGRAM} was not found). Install it, or run on the CPU."
        ) from error
    try:
        table: bytes = process.communicate(timeout=SECONDS)[0]
    except subprocess.TimeoutExpired as error:
        process.kill()
        # Do not wait here: a process that hangs in the driver may not end even when killed.
        threading.Thread(target=process.communicate, name="driver-end", daemon=True).start()
        raise HTTPException(
            UPSTREAM,
            f"{PROGRAM} did not answer within {SECONDS:g} s. Restart the GPU's driver.",
        ) from error
    return table
