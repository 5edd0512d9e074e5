"""Answer a browser that keeps a copy: it asks each time, and gets the content only if its copy is out of date."""

import hashlib
from collections.abc import Callable
from typing import Final

from fastapi import Request, Response

from totalspineseg_server.infers.http import NOT_MODIFIED, OK

ASK_EACH_TIME: Final = {"cache-control": "private, no-cache"}


def tag_of(content: bytes) -> str:
    """Return a tag that changes with the content."""
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def revalidated(call: Request, tag: str, answer: Callable[[], Response]) -> Response:
    """Return a request's answer with its tag, or nothing (304) if the browser has it already.

    Args:
        call: The request.
        tag: Quoted; changes whenever the answer may have changed.
        answer: Makes the answer; called only if it is needed. An answer without content gets no tag.
    """
    headers = {"etag": tag, **ASK_EACH_TIME}
    if call.headers.get("if-none-match") == tag:
        return Response(status_code=NOT_MODIFIED, headers=headers)
    response = answer()
    if response.status_code == OK:
        response.headers.update(headers)
    return response
