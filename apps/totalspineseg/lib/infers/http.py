"""Errors as clients see them: a status and one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from fastapi import HTTPException

from lib.errors import (
    BusyError,
    MemoryShortageError,
    StorageError,
    SubmissionError,
    TotalSpineSegError,
    UnknownImageError,
    WeightsError,
)

UNUSABLE: Final = 422
"""What was sent cannot be used: image, label, setting."""
NOT_READY: Final = 409
"""The server lacks what the request needs, and its owner can change that."""
NO_ROOM: Final = 507
HELD: Final = 503
"""The same request may succeed a little later."""
NOT_FOUND: Final = 404
OURS: Final = 500
"""A fault of the server's own."""


class UnknownLabelError(TotalSpineSegError):
    """An image has no label under this tag."""

    def __init__(self, image_id: str, tag: str) -> None:
        super().__init__(f"a label of image {image_id!r} is required, got none under the tag {tag!r}; ask for the list")


def status_of(error: TotalSpineSegError) -> int:
    """The HTTP status that fits an error."""
    if isinstance(error, (UnknownImageError, UnknownLabelError)):
        return NOT_FOUND
    if isinstance(error, WeightsError):
        return NOT_READY
    if isinstance(error, BusyError):
        return HELD
    if isinstance(error, SubmissionError):
        return OURS
    return NO_ROOM if isinstance(error, (StorageError, MemoryShortageError)) else UNUSABLE


@contextmanager
def http_errors() -> Iterator[None]:
    """Turn the project's errors into ``HTTPException``, which reaches the client whole.

    Raises:
        HTTPException: In place of any ``TotalSpineSegError``.
    """
    try:
        yield
    except TotalSpineSegError as error:
        raise HTTPException(status_of(error), str(error)) from error
