"""Serve ``/proxy/dicom/..``: OHIF's path to the PACS, and to nothing else.

MONAI Label's own proxy drops the query string and the Accept header, so searches find everything, and frames arrive in
a format that the viewer did not ask for.
"""

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Annotated, Final, Literal, TypeVar

import requests
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User

from totalspineseg_server.front import front_messages
from totalspineseg_server.front.stow import Upload, received_body, take_submissions
from totalspineseg_server.infers.http import NOT_FOUND, NOT_MODIFIED, OK, READ_ONLY, UPSTREAM
from totalspineseg_server.pacs.address import (
    PARALLEL_CALLS,
    Address,
    Service,
    configured_address,
    configured_session,
    is_uid,
)

logger = logging.getLogger(__name__)

PREFIX: Final = "/proxy/dicom"
CHUNK_BYTES: Final = 1 << 18
PASSED_ON: Final = ("accept", "accept-language", "content-type")
"""The browser's headers that the PACS receives; cookies and tokens are for this server only."""
PASSED_BACK: Final = ("content-type", "warning")
PRIVATE: Final = {"cache-control": "no-store"}
"""Header that keeps patients' data out of the browser's cache, which also keeps lists up to date."""
JSON_TYPES: Final = ("application/dicom+json", "application/json")
ENCODED_STARS: Final = ("%2A", "%2a")
"""Encodings of ``*``. Some servers treat an encoded wildcard as a letter; both spellings mean the same."""
Result = TypeVar("Result")
ALL_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Pacs:
    """Calls to the PACS over one session, which is made on first use."""

    def __init__(self) -> None:
        self._session: requests.Session | None = None
        self._places = CapacityLimiter(PARALLEL_CALLS)

    async def beside(self, work: Callable[[], Result]) -> Result:
        """Run a call to the PACS in a group of threads of its own, so that twenty hanging calls of a viewer block no
        other request.
        """
        return await to_thread.run_sync(work, limiter=self._places)

    async def pieces(self, answer: "Answer") -> AsyncIterator[bytes]:
        """Yield a long answer piece by piece as it arrives."""
        with answer.response:
            content = answer.response.iter_content(CHUNK_BYTES)
            while piece := await self.beside(lambda: next(content, b"")):
                yield piece

    def call(
        self, method: str, url: str, query: str, headers: Mapping[str, str], body: Upload | None = None
    ) -> "Answer":
        """Ask the PACS.

        Args:
            method: "GET" or "POST".
            url: Address of the resource, without the query.
            query: Query as the browser sent it.
            headers: Headers to pass on.
            body: Body to send.
        """
        for encoded in ENCODED_STARS:
            query = query.replace(encoded, "*")
        if self._session is None:
            self._session = configured_session()
        response = self._session.request(
            method,
            f"{url}?{query}" if query else url,
            headers=dict(headers),
            data=None if body is None else body.stream(),
            stream=True,
            # Do not follow redirects to other hosts.
            allow_redirects=False,
        )
        return Answer(response)

    def holds(self, where: Address, instance: str) -> bool:
        """Return whether the PACS has an instance that it was asked to store; the answers to such requests come in too
        many forms.

        If the PACS does not answer this question, it counts as stored: a label must not be lost for that.
        """
        if not is_uid(instance):
            return False
        query = f"SOPInstanceUID={instance}&limit=1"
        try:
            answer = self.call("GET", where.url("qido", "instances"), query, {"accept": JSON_TYPES[0]})
            if answer.status < 500:
                return answer.status == OK and instance.encode() in answer.content()
            reason = str(answer.status)
        except (requests.RequestException, HTTPException) as error:
            reason = type(error).__name__
        logger.warning("The PACS does not say whether it has stored a segmentation: %s", reason)
        return True


class Answer:
    """An answer of the PACS."""

    def __init__(self, response: requests.Response) -> None:
        self.response = response
        self.status = response.status_code
        self.headers = {name: response.headers[name] for name in PASSED_BACK if name in response.headers}
        if 300 <= self.status < 400 and self.status != NOT_MODIFIED:
            response.close()
            raise HTTPException(UPSTREAM, front_messages.PACS_REDIRECTS)

    @property
    def is_json(self) -> bool:
        """Whether the answer is a list or metadata."""
        return self.headers.get("content-type", "").split(";")[0].strip().lower() in JSON_TYPES

    def content(self) -> bytes:
        """Return the whole answer."""
        with self.response:
            content: bytes = self.response.content
        return content


def router() -> APIRouter:
    """Return the routes."""
    routes = APIRouter()
    pacs = Pacs()

    @routes.get(PREFIX + "/{service}/{path:path}")
    async def read(
        service: Literal["qido", "wado", "stow"],
        path: str,
        request: Request,
        user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))],
    ) -> Response:
        """Search or retrieve."""
        where = configured_address()
        # Some versions of the viewer ask the search service for metadata.
        service = "wado" if path.rstrip("/").endswith("metadata") else service
        url = where.url(service, path)

        def work() -> Answer | Response:
            answer = pacs.call("GET", url, request.url.query, _passed_on(request))
            if not answer.is_json:
                return answer
            content = _own_links(answer.content(), where, request)
            return Response(content, answer.status, {**answer.headers, **PRIVATE})

        answer = await pacs.beside(work)
        if isinstance(answer, Response):
            return answer
        return StreamingResponse(pacs.pieces(answer), answer.status, {**answer.headers, **PRIVATE})

    @routes.post(PREFIX + "/{service}/{path:path}")
    async def store(
        service: Service,
        path: str,
        request: Request,
        user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))],
    ) -> Response:
        """Store instances; segmentations among them count as submissions."""
        parts = path.strip("/").split("/")
        if parts[0] != "studies" or len(parts) > 2:
            raise HTTPException(
                READ_ONLY,
                front_messages.INSTANCES_ONLY,
                {"allow": "GET"},
            )
        url = configured_address().url("stow", path)
        async with received_body(request) as upload:

            def work() -> Response:
                answer = pacs.call("POST", url, request.url.query, _passed_on(request), upload)
                content = answer.content()
                if answer.status < 300:
                    take_submissions(upload, lambda instance: pacs.holds(configured_address(), instance), user.username)
                return Response(content, answer.status, {**answer.headers, **PRIVATE})

            return await pacs.beside(work)

    @routes.api_route("/proxy/{path:path}", methods=list(ALL_METHODS), include_in_schema=False)
    def others(path: str, request: Request) -> None:
        """Refuse all other addresses: MONAI Label's own routes here pass any path on."""
        if path.split("/")[0] == "dicom" and request.method not in ("GET", "POST"):
            raise HTTPException(READ_ONLY, front_messages.READ_AND_STORE_ONLY)
        raise HTTPException(NOT_FOUND, front_messages.NOTHING_HERE.format(prefix=PREFIX))

    return routes


def _passed_on(request: Request) -> dict[str, str]:
    return {name: request.headers[name] for name in PASSED_ON if name in request.headers}


def _own_links(content: bytes, where: Address, request: Request) -> bytes:
    """Rewrite links to the PACS to lead through this server, because a browser may not reach the PACS itself."""
    here = str(request.base_url).rstrip("/")
    prefix = "/".join(filter(None, (where.base, where.wado)))
    return content.replace(f'"{prefix}/'.encode(), f'"{here}{PREFIX}/wado/'.encode())
