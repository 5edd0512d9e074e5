"""Answer every failure with a status and one sentence; the trace goes to the log, not to the client."""

import errno
import logging
import re
import sys
import tempfile
from pathlib import Path
from typing import Final

import requests
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from monailabel.config import settings
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse, Response

from totalspineseg_server.errors import TotalSpineSegError
from totalspineseg_server.front import front_messages
from totalspineseg_server.infers.http import BUSY, NO_ROOM, NOT_FOUND, OURS, UNUSABLE, UPSTREAM, status_of
from totalspineseg_server.places import PACKAGE

logger = logging.getLogger(__name__)

UNAUTHORIZED: Final = (400, 401, 403)
"""Statuses by which an identity server rejects a user, rather than failing itself."""
RUNNING: Final = {
    "/batch/": front_messages.BATCH_RUNS,
    "/scoring/": front_messages.SCORING_RUNS,
}
"""Beginning of an address -> answer if MONAI Label would start a second process; its own answer is a line of its
log."""
DISK_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def without_folders(text: str) -> str:
    """Return a text whose paths begin at the studies, the app or the programs, not at the root of the disk.

    Args:
        text: For example a sentence about /srv/mri/.totalspineseg/maps; /srv/mri, the folder of the studies, is left
        out.
    """
    conf = settings.MONAI_LABEL_APP_CONF or {}
    named = (settings.MONAI_LABEL_STUDIES, str(conf.get("work") or ""), settings.MONAI_LABEL_APP_DIR)
    others = (str(PACKAGE.parent), sys.prefix, sys.base_prefix, tempfile.gettempdir(), str(Path.home()))
    # Replace the longest first: one folder may lie in another.
    roots = sorted({root.rstrip("/\\") for root in (*named, *others)} - {""}, key=len, reverse=True)
    pattern = "|".join(rf"{re.escape(root)}(?:[/\\]|(?![\w.-]))" for root in roots)
    return re.sub(pattern, lambda found: "" if found[0].endswith(("/", "\\")) else Path(found[0]).name, text)


def install(app: FastAPI) -> None:
    """Let an application answer all failures in one way."""
    app.add_exception_handler(TotalSpineSegError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StarletteHTTPException, _http)
    app.add_exception_handler(MONAILabelException, _host)
    app.add_exception_handler(requests.RequestException, _upstream)
    app.add_exception_handler(OSError, _system)
    app.add_exception_handler(Exception, _unexpected)


def _answer(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    if status == NO_ROOM:
        # The log keeps the folder: the server's owner needs it.
        logger.error("%s", sentence)
    return JSONResponse({"detail": without_folders(sentence)}, status, headers)


def _ours(_: Request, error: Exception) -> Response:
    assert isinstance(error, TotalSpineSegError)
    return _answer(status_of(error), str(error))


def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = " ".join(str(part) for part in first.get("loc", ()))
    return _answer(UNUSABLE, front_messages.BAD_REQUEST.format(place=place, fault=first.get("msg", "not valid")))


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in DISK_ERRORS:
        return _no_room(cause)
    headers = dict(error.headers) if error.headers else None
    sentence = str(error.detail)
    if error.status_code == BUSY:
        path = request.url.path
        sentence = next((text for start, text in RUNNING.items() if path.startswith(start)), sentence)
    return _answer(error.status_code, sentence, headers)


def _host(_: Request, error: Exception) -> Response:
    assert isinstance(error, MONAILabelException)
    missing = isinstance(error, ImageNotFoundException | LabelNotFoundException)
    return _answer(NOT_FOUND if missing else UNUSABLE, str(error.msg))


def _upstream(_: Request, error: Exception) -> Response:
    answer = getattr(error, "response", None)
    if answer is not None and answer.status_code in UNAUTHORIZED:
        return _answer(answer.status_code, front_messages.NOT_SIGNED_IN)
    logger.warning("A server behind this one did not answer: %s", type(error).__name__)
    return _answer(UPSTREAM, front_messages.NO_ANSWER)


def _system(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    return _no_room(error) if error.errno in DISK_ERRORS else _unexpected(request, error)


def _no_room(error: OSError) -> Response:
    logger.error("Cannot write: %s", error)
    return _answer(
        NO_ROOM,
        front_messages.CANNOT_WRITE.format(reason=error.strerror),
    )


def _unexpected(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _answer(OURS, front_messages.OWN_FAULT)
