"""Limit what a page of this server may load: only files of this server."""

from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

HEADER: Final = "content-security-policy"
POLICY: Final = {HEADER: "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"}
"""Content security policy: no other server learns that or where a study is read, and no foreign script can read it."""
HTML: Final = "text/html"


def with_policy(send: Send) -> Send:
    """Add the policy to every page without a stricter one, whichever application answers with it."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            if headers.get("content-type", "").startswith(HTML):
                headers.setdefault(HEADER, POLICY[HEADER])
        await send(message)

    return sending
