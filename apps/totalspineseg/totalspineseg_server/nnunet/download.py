"""Download files over unreliable connections: partial files are kept and continued."""

import contextlib
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final

from totalspineseg_server.errors import WeightsError
from totalspineseg_server.files import storage_errors, write_text
from totalspineseg_server.nnunet import nnunet_messages

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in total); the total is 0 if it is unknown."""

CHUNK_BYTES: Final = 1 << 18
"""Number of bytes between two reports of progress."""
TIMEOUT_S: Final = 30.0
"""Time without data after which a connection is given up, seconds."""
ATTEMPTS: Final = 6
"""Number of attempts in a row without new bytes after which the download is given up."""
BUSY: Final = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
"""HTTP statuses below 500 after which another attempt may succeed."""
MAX_BYTES: Final = 4 << 30
"""Largest download: the official files have just under 1 GiB each, so a larger file must be something else."""


def download(
    url: str, target: Path, *, progress: Progress | None = None, attempts: int = ATTEMPTS, pause_s: float = 1.0
) -> None:
    """Fetch a file, continuing from ``<target>.part`` of an earlier call.

    Args:
        url: https address; http only on this machine.
        target: File to write; it appears when it is complete.
        progress: Called as bytes arrive.
        attempts: Attempts in a row without a new byte before giving up.
        pause_s: Wait before the next attempt, doubled each time, seconds.

    Raises:
        WeightsError: The address is not allowed, the server refuses, or the connection keeps failing.
        StorageError: The file cannot be written.
    """
    _check_address(url)
    with storage_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    failures = 0
    while True:
        before = _size(part)
        try:
            done = _continue(url, part, progress)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in BUSY:
                raise WeightsError(
                    nnunet_messages.HTTP_ERROR.format(code=error.code, url=url, advice=nnunet_messages.ADVICE)
                ) from error
            reason = f"HTTP {error.code}"
            done = False
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            done = False
        else:
            reason = nnunet_messages.ENDED_EARLY
        if done:
            with storage_errors(target.parent):
                part.replace(target)
                _tag_file(part).unlink(missing_ok=True)
            return
        failures = 0 if _size(part) > before else failures + 1
        if failures >= attempts:
            raise WeightsError(
                nnunet_messages.NO_CONNECTION.format(host=_host(url), reason=reason, advice=nnunet_messages.ADVICE)
            )
        time.sleep(min(30.0, pause_s * 2**failures))


def _continue(url: str, part: Path, progress: Progress | None) -> bool:
    """Request the missing part; return True once the file is complete."""
    have = _size(part)
    request = urllib.request.Request(url, headers=_headers(part, have))
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        # The file is complete, or the server has another file now.
        complete = error.headers.get("Content-Range", "") == f"bytes */{have}"
        if not complete:
            part.unlink()
        return complete
    with contextlib.closing(response):
        _check_address(response.url)
        continues = response.status == HTTPStatus.PARTIAL_CONTENT and _start(response) == have
        if response.status == HTTPStatus.PARTIAL_CONTENT and not continues:
            part.unlink(missing_ok=True)
            return False
        have = have if continues else 0
        length = int(response.headers.get("Content-Length") or 0)
        total = have + length if length else 0
        if total > MAX_BYTES:
            raise WeightsError(
                nnunet_messages.TOO_LARGE.format(
                    url=url, total=total, limit=MAX_BYTES >> 30, advice=nnunet_messages.ADVICE
                )
            )
        write_text(_tag_file(part), response.headers.get("ETag", ""))
        done = _copy(response, part, have, total, progress)
        return done == total if total else True


def _copy(response: http.client.HTTPResponse, part: Path, have: int, total: int, progress: Progress | None) -> int:
    """Append the server's data to the file (from 0, replace it), and return the new size."""
    with storage_errors(part.parent):
        stream = part.open("ab" if have else "wb")
    with stream:
        while True:
            # Network errors are OSErrors, too, so only errors of writing are turned into storage errors.
            chunk = response.read(CHUNK_BYTES)
            if not chunk:
                return have
            have += len(chunk)
            if have > MAX_BYTES:
                raise WeightsError(
                    nnunet_messages.TOO_LARGE_SO_FAR.format(
                        url=response.url, limit=MAX_BYTES >> 30, advice=nnunet_messages.ADVICE
                    )
                )
            with storage_errors(part.parent):
                stream.write(chunk)
                stream.flush()
            if progress:
                progress(have, total)


def _headers(part: Path, have: int) -> dict[str, str]:
    headers = {"User-Agent": "totalspineseg", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        tag = _tag_file(part)
        if tag.is_file() and (value := tag.read_text(encoding="utf-8")) and not value.startswith("W/"):
            # If the file on the server has changed, let the server send all of it, not the rest of another file.
            headers["If-Range"] = value
    return headers


def _start(response: http.client.HTTPResponse) -> int:
    """Return the position of the first byte of a partial answer; -1 if the answer does not say."""
    unit, _, rest = (response.headers.get("Content-Range") or "").partition(" ")
    first = rest.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdigit() else -1


def _check_address(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    local = parts.hostname in ("127.0.0.1", "localhost", "::1")
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise WeightsError(f"expected an https address, got {url!r}. {nnunet_messages.ADVICE}")


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).hostname or url


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
