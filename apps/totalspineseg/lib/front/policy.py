"""What a page of this server may load: things of this server alone."""

from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

HEADER: Final = "content-security-policy"
POLICY: Final = {HEADER: "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"}
"""Nobody else learns that, or where, a study is read, and nobody's script can read it."""
HTML: Final = "text/html"


def with_policy(send: Send) -> Send:
    """Let every page have the policy, whoever of those behind answers with it."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            if headers.get("content-type", "").startswith(HTML):
                headers.update(POLICY)
        await send(message)

    return sending
