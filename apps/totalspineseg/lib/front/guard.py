"""Turns away what no handler behind should ever see: unsafe names, closed routes, oversized bodies, foreign pages."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib.corrections.datastore import is_safe_tag
from lib.corrections.image_ids import is_usable_id
from lib.front.names import is_own
from lib.front.policy import with_policy
from lib.front.statuses import BAD_REQUEST, FORBIDDEN, TOO_LARGE
from lib.infers.http import NOT_FOUND

SESSION_ID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")
"""Sessions are UUIDs."""
ID_PARAMETERS: Final = ("image", "label", "id")
SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Known:
    """What the running app offers.

    Attributes:
        models: Names of its models.
        trainers: Names of its trainers.
        scorers: Names of its scoring methods.
        strategies: Names of the orders in which it offers images.
        on_server: Whether the studies lie on a DICOMweb server.
    """

    models: Collection[str]
    trainers: Collection[str]
    scorers: Collection[str]
    strategies: Collection[str]
    on_server: bool


@dataclass(frozen=True)
class Refusal:
    """Why a request is turned away."""

    status: int
    detail: str


class Guard:
    """ASGI middleware around everything else.

    Args:
        app: What it protects.
        known: Asked per request what the running app offers.
        origins: Web origins that may use the server besides its own pages.
        max_upload_bytes: Largest request body.
        names: What the server may be called, besides its IP addresses.
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
        """Refuse, or pass on with a counted body; pages that come back may load things of this server alone."""
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
        return f"a request of at most {self._limit / 2**20:g} MiB is required; raise --max-upload-mb to send more"

    def _counted(self, receive: Receive) -> Receive:
        """The body without a declared length is measured while it comes."""
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
    """A path that climbs or hides something."""
    if ".." in path.split("/") or "\\" in path or any(ord(c) < 32 for c in path):
        return Refusal(BAD_REQUEST, "a path without '..', backslashes or control characters is required; correct it")
    parts = [part for part in path.split("/") if part]
    if len(parts) == 2 and parts[0] == "session" and not SESSION_ID.fullmatch(parts[1]):
        return Refusal(BAD_REQUEST, f"a session id as the server gave it is required, got {parts[1]!r}")
    return None


def unsafe_parameter(name: str, value: str) -> Refusal | None:
    """An id that nobody can read, or a tag or session that could leave its folder."""
    if not value:
        return None
    if name in ID_PARAMETERS and not is_usable_id(value):
        return Refusal(BAD_REQUEST, f"{name!r} must be a short id without control characters, got {value[:80]!r}")
    if name == "tag" and not is_safe_tag(value):
        return Refusal(BAD_REQUEST, f"'tag' must be a word of letters, digits, '-' and '_', got {value!r}")
    if name == "session_id" and not SESSION_ID.fullmatch(value):
        return Refusal(BAD_REQUEST, f"'session_id' must be as the server gave it, got {value!r}")
    return None


def foreign_host(host: str, names: Collection[str]) -> Refusal | None:
    """A name that is not this server's."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        name = None
    if is_own(name, names):
        return None
    return Refusal(
        BAD_REQUEST,
        f"a name of this server's machine or its IP address is required, got {host!r}; use one of these, or start the "
        "server with --name and the name it shall have",
    )


def foreign_page(method: str, headers: Headers, origins: Collection[str]) -> Refusal | None:
    """A web page of another origin that tries to change something; programs send no Origin."""
    origin = headers.get("origin")
    if origin is None or method in SAFE_METHODS or origin in origins:
        return None
    if urlsplit(origin).netloc == headers.get("host"):
        return None
    return Refusal(FORBIDDEN, f"a page of this server or an allowed origin is required, got {origin!r}")


def closed_route(method: str, path: str, query: dict[str, str], known: Callable[[], Known]) -> Refusal | None:
    """A route of the host that is closed, or that would fail without a word."""
    room = path.split("/")[1]
    rest = path.removeprefix(f"/{room}").strip("/")
    if room == "reload":
        return Refusal(FORBIDDEN, "the app is not reloaded over the network; restart the server")
    if room == "model" and method not in SAFE_METHODS:
        return Refusal(FORBIDDEN, "models are not changed over the network; use the 'totalspineseg weights' command")
    if path.startswith(("/infer/wsi/", "/infer/wsi_v2/")):
        return Refusal(NOT_FOUND, "this server segments volumes, not slides; use /infer/{model}")
    if room == "proxy" and not known().on_server:
        return Refusal(NOT_FOUND, "there is no DICOMweb server behind this one; the studies lie in a folder")
    if method != "POST":
        return None
    if room in ("batch", "scoring") and query.get("run_sync", "").lower() in ("true", "1", "yes", "on", "t", "y"):
        return Refusal(BAD_REQUEST, "Batch inference and scoring run in the background. Leave run_sync out.")
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
    return Refusal(NOT_FOUND, f"a {kind} that exists ({listed}) is required, got {name!r}")
