"""Refuse requests before any route sees them: unsafe names, closed routes, bodies that are too large, foreign pages."""

import re
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from totalspineseg_server.corrections.correction_store import is_safe_tag
from totalspineseg_server.corrections.ids import is_usable_id
from totalspineseg_server.front import front_messages
from totalspineseg_server.infers.http import BAD_REQUEST, FORBIDDEN, NOT_FOUND, TOO_LARGE
from totalspineseg_server.places import COMMAND

HEADER: Final = "content-security-policy"
POLICY: Final = {HEADER: "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"}
"""Content security policy: no other server learns that a study is read here, and no foreign script can read it."""
HTML: Final = "text/html"
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
"""Addresses that only this machine can reach."""


def own_names(host: str, more: Collection[str] = ()) -> frozenset[str]:
    """Return the names by which readers call the server.

    Args:
        host: Address it listens on. Clients on a network call it by the machine's name.
        more: Other names that its owner knows, such as that of a proxy before it.
    """
    network = () if host in LOOPBACK else (host, socket.gethostname(), socket.getfqdn())
    return frozenset(name.lower() for name in (*LOOPBACK, *network, *more) if name)


def is_own(name: str | None, names: Collection[str]) -> bool:
    """Return whether a host name is this server's; an IP address always is, because nobody can point it elsewhere."""
    if name is None:
        return False
    try:
        ip_address(name)
    except ValueError:
        return name in names
    return True


def with_policy(send: Send) -> Send:
    """Add the policy to every page without a stricter one, whichever application answers with it."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            if headers.get("content-type", "").startswith(HTML):
                headers.setdefault(HEADER, POLICY[HEADER])
        await send(message)

    return sending


SESSION_ID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")
"""Allowed session ids; the server's own are UUIDs."""
ID_PARAMETERS: Final = ("image", "label", "id")
SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Known:
    """Names of everything that the running app offers.

    Attributes:
        models: Names of its models.
        trainers: Names of its trainers.
        scorers: Names of its scoring methods.
        strategies: Names of the orders in which it offers images.
        on_server: Whether the studies are on a DICOMweb server.
    """

    models: Collection[str]
    trainers: Collection[str]
    scorers: Collection[str]
    strategies: Collection[str]
    on_server: bool


@dataclass(frozen=True)
class Refusal:
    """Status and reason of a refused request."""

    status: int
    detail: str


class Guard:
    """ASGI middleware around everything else.

    Args:
        app: Application to protect.
        known: Called for each request; returns the names of everything that the running app offers.
        origins: Web origins that may use the server besides its own pages.
        max_upload_bytes: Largest request body.
        names: Names of the server, besides its IP addresses.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        known: Callable[[], Known],
        origins: Collection[str],
        max_upload_bytes: int,
        names: Collection[str],
    ) -> None:
        self.app = app
        self._known = known
        self._origins = frozenset(origins)
        self._limit = max_upload_bytes
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on with a counted body; returned pages may load only from this server."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await JSONResponse({"detail": refusal.detail}, refusal.status)(scope, receive, send)
            return
        await self.app(scope, self._counted(receive), with_policy(send))

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        path = "/" + "/".join(part for part in scope["path"].split("/") if part)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        return (
            foreign_host(headers.get("host", ""), self._names)
            or unsafe_path(scope["path"])
            or next((found for name, value in query if (found := unsafe_parameter(name, value))), None)
            or foreign_page(scope["method"], headers, self._origins)
            or self._oversized(headers)
            or closed_route(scope["method"], path, dict(query), self._known)
        )

    def _oversized(self, headers: Headers) -> Refusal | None:
        length = headers.get("content-length", "0")
        return Refusal(TOO_LARGE, self._limit_text()) if length.isdecimal() and int(length) > self._limit else None

    def _limit_text(self) -> str:
        return front_messages.TOO_LARGE.format(limit=self._limit / 2**20)

    def _counted(self, receive: Receive) -> Receive:
        """Count a body as it arrives, because its length may not be declared."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                raise HTTPException(TOO_LARGE, self._limit_text())
            return message

        return counted


def unsafe_path(path: str) -> Refusal | None:
    """Refuse a path that leads out of its folder or hides something."""
    if ".." in path.split("/") or "\\" in path or any(ord(c) < 32 for c in path):
        return Refusal(BAD_REQUEST, front_messages.UNSAFE_PATH)
    parts = [part for part in path.split("/") if part]
    if len(parts) == 2 and parts[0] == "session" and not SESSION_ID.fullmatch(parts[1]):
        return Refusal(
            BAD_REQUEST,
            front_messages.NO_SESSION_ID.format(text=parts[1]),
        )
    return None


def unsafe_parameter(name: str, value: str) -> Refusal | None:
    """Refuse an unreadable id, or a tag or session id that could lead out of its folder."""
    if not value:
        return None
    if name in ID_PARAMETERS and not is_usable_id(value):
        return Refusal(BAD_REQUEST, f"{name!r} must be a short id without control characters, got {value[:80]!r}")
    if name == "tag" and not is_safe_tag(value):
        return Refusal(BAD_REQUEST, f"'tag' must be a word of letters, digits, '-' and '_', got {value!r}")
    if name == "session_id" and not SESSION_ID.fullmatch(value):
        return Refusal(BAD_REQUEST, f"'session_id' must be the id that the server returned, got {value!r}")
    return None


def foreign_host(host: str, names: Collection[str]) -> Refusal | None:
    """Refuse a host name that is not this server's."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        name = None
    if is_own(name, names):
        return None
    return Refusal(
        BAD_REQUEST,
        front_messages.FOREIGN_NAME.format(host=host),
    )


def foreign_page(method: str, headers: Headers, origins: Collection[str]) -> Refusal | None:
    """Refuse a web page of another origin that tries to change something; programs send no Origin."""
    origin = headers.get("origin")
    if origin is None or method in SAFE_METHODS or origin in origins:
        return None
    if urlsplit(origin).netloc == headers.get("host"):
        return None
    return Refusal(
        FORBIDDEN,
        front_messages.FOREIGN_PAGE.format(origin=origin),
    )


def closed_route(method: str, path: str, query: dict[str, str], known: Callable[[], Known]) -> Refusal | None:
    """Refuse a route of MONAI Label that is closed, or that would fail without an error."""
    room = path.split("/")[1]
    rest = path.removeprefix(f"/{room}").strip("/")
    if room == "reload":
        return Refusal(FORBIDDEN, front_messages.NO_RELOAD)
    if room == "model" and method not in SAFE_METHODS:
        return Refusal(FORBIDDEN, front_messages.NO_MODEL_CHANGE.format(command=COMMAND))
    if path.startswith(("/infer/wsi/", "/infer/wsi_v2/")):
        return Refusal(NOT_FOUND, front_messages.NO_SLIDES)
    if room == "proxy" and not known().on_server:
        return Refusal(NOT_FOUND, front_messages.NO_PACS)
    if method != "POST":
        return None
    if room in ("batch", "scoring") and query.get("run_sync", "").lower() in ("true", "1", "yes", "on", "t", "y"):
        return Refusal(BAD_REQUEST, front_messages.RUN_SYNC)
    if path.startswith("/batch/infer/"):
        return _unknown("model", path.removeprefix("/batch/infer/"), known().models)
    if room == "train" and rest:
        return _unknown("trainer", rest, known().trainers)
    if room == "scoring" and rest:
        return _unknown("scoring method", rest, known().scorers)
    return None


def _unknown(kind: str, name: str, names: Collection[str]) -> Refusal | None:
    if name in names:
        return None
    listed = ", ".join(sorted(names)) or "none on this server"
    return Refusal(NOT_FOUND, front_messages.UNKNOWN_NAME.format(kind=kind, name=name, known=listed))
