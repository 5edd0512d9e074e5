"""Serve ``POST /infer/{model}`` off the event loop: one inference at a time, while all other requests are served.

The queue is limited, because each place may hold an upload. A request whose client has gone is not computed.
"""

import asyncio
import json
import tempfile
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, File, Form, HTTPException, Request, Response, UploadFile
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance
from requests_toolbelt import MultipartEncoder

from totalspineseg_server.front import front_messages
from totalspineseg_server.front.saved import report_as_sent, write_as_listed
from totalspineseg_server.front.studies import read_params, save_image, save_label
from totalspineseg_server.infers.http import BUSY, FORBIDDEN, NOT_FOUND, UNUSABLE
from totalspineseg_server.infers.listed import without_listed
from totalspineseg_server.infers.sessions import TrustedPath
from totalspineseg_server.infers.settings import saves_label

Output = Literal["image", "json", "all", "dicom_seg"]
RESERVED = ("model", "image", "image_id", "label_from", "session", "description")
"""Request fields that only the server sets; MONAI Label lets parameters replace even the path of the image."""

REPORT_HEADER: Final = "x-totalspineseg-report"
"""Header for clients that do not read the report of a result, with what readers must know: the fields ``IN_SHORT`` as
JSON.
"""
IN_SHORT: Final = ("prediction", "message", "marked", "warning")
ASK_SECONDS: Final = 5.0
MAX_WAITING: Final = 50
"""Longest queue: half an hour of work on a CPU. Nobody would wait longer."""


def router(executor: Executor) -> APIRouter:
    """Return the route.

    Args:
        executor: One worker thread; its queue holds the waiting requests.
    """
    routes = APIRouter()
    line: set[int] = set()

    @routes.get("/infer/progress")
    def progress(user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]) -> dict[str, Any]:
        """Return the progress of the current inference, and the number of waiting requests."""
        running = app_instance().infer_progress()
        return {"running": running, "waiting": max(0, len(line) - (running is not None))}

    @routes.post("/infer/{model}")
    async def infer(
        model: str,
        call: Request,
        user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))],
        image: str = "",
        session_id: str = "",
        params: Annotated[str, Form()] = "{}",
        file: Annotated[UploadFile | None, File()] = None,
        label: Annotated[UploadFile | None, File()] = None,
        output: Output | None = None,
    ) -> Response:
        """Segment an image of the studies, of a session, or one that comes with the request."""
        request, loop = _request(model, read_params(params), user), asyncio.get_running_loop()
        role = settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR
        if settings.MONAI_LABEL_AUTH_ENABLE and saves_label(request) and role not in user.roles:
            raise HTTPException(FORBIDDEN, front_messages.ROLE_NEEDED.format(role=role))
        if len(line) >= MAX_WAITING:
            raise HTTPException(BUSY, front_messages.BUSY_SERVER.format(waiting=len(line)))

        def work() -> Response:
            if _is_gone(call, loop):
                return Response(status_code=BUSY)
            with tempfile.TemporaryDirectory(prefix="totalspineseg-request-") as name:
                folder = Path(name)
                request["image"] = _image(image, session_id, file, folder)
                if label is not None:
                    request["label"] = TrustedPath(save_label(label, folder))
                result = app_instance().infer(request)
                if output == "dicom_seg":
                    return _segmentation(request["image"], result)
                return _response(result, output)

        line.add(id(call))
        try:
            return await loop.run_in_executor(executor, work)
        finally:
            line.discard(id(call))

    return routes


def _is_gone(call: Request, loop: asyncio.AbstractEventLoop) -> bool:
    """Ask from a worker thread whether the client has hung up; return False while the server ends."""

    async def ask() -> bool:
        # Ask twice: the first answer may be a body that nobody has read.
        return await call.is_disconnected() or await call.is_disconnected()

    try:
        return asyncio.run_coroutine_threadsafe(ask(), loop).result(ASK_SECONDS)
    except TimeoutError:
        return False


def _request(model: str, params: dict[str, Any], user: User) -> dict[str, Any]:
    request = {name: value for name, value in params.items() if name not in RESERVED}
    if settings.MONAI_LABEL_AUTH_ENABLE:
        request["client_id"] = user.username
    return {**request, "model": model}


def _image(image: str, session_id: str, file: UploadFile | None, folder: Path) -> str:
    """Return the image to segment: the file in the request, a session's image, or an image of the studies."""
    if file is not None:
        return TrustedPath(save_image(file, folder))
    if session_id:
        sessions = app_instance().sessions()
        session = sessions.get_session(session_id) if sessions is not None else None
        if session is None:
            raise HTTPException(NOT_FOUND, front_messages.NO_SESSION.format(session=session_id))
        return TrustedPath(session.image)
    if not image:
        raise HTTPException(UNUSABLE, front_messages.NO_IMAGE)
    return image


def _segmentation(image: str, result: dict[str, Any]) -> Response:
    """Return the result as a DICOM SEG of its series."""
    file = Path(result["file"])
    try:
        series = "" if isinstance(image, TrustedPath) else image
        content = app_instance().segmentation(series, file, result["params"])
    finally:
        file.unlink(missing_ok=True)
    return Response(content, media_type="application/dicom")


def _in_short(report: Mapping[str, Any]) -> str:
    return json.dumps({name: report.get(name) for name in IN_SHORT})


def _response(result: dict[str, Any], output: Output | None) -> Response:
    """Return the reply in the form the client asked for, and remove the result's temporary file.

    A label map that is sent alone has the published ids. One that is sent with its names has the values they state.
    """
    file, report = Path(result["file"]), without_listed(result["params"])
    try:
        if output in (None, "all"):
            write_as_listed(file, file, result["params"])
            report = report_as_sent(result["params"])
        content = file.read_bytes()
    finally:
        file.unlink(missing_ok=True)
    if output == "image":
        headers = {"content-disposition": f'attachment; filename="{file.name}"', REPORT_HEADER: _in_short(report)}
        return Response(content, media_type="application/octet-stream", headers=headers)
    if output == "json":
        return Response(json.dumps(report), media_type="application/json")
    fields = {
        "params": (None, json.dumps(report), "application/json"),
        "image": (file.name, content, "application/octet-stream"),
    }
    message = MultipartEncoder(fields=fields)
    return Response(message.to_string(), media_type=message.content_type)
