"""Turn errors into answers for clients: a status and one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from fastapi import HTTPException

from lib.errors import (
    BusyError,
    ConflictError,
    MemoryShortageError,
    StorageError,
    SubmissionError,
    TotalSpineSegError,
    UnknownImageError,
    WeightsError,
)

UNUSABLE: Final = 422
"""The image, label or setting that was sent cannot be used."""
NOT_READY: Final = 409
"""The server lacks something the request needs, and its owner can change that."""
NO_ROOM: Final = 507
HELD: Final = 503
"""The same request may succeed a little later."""
NOT_FOUND: Final = 404
OURS: Final = 500
"""The server itself failed."""


class UnknownLabelError(TotalSpineSegError):
    """An image has no label under this tag."""

    def __init__(self, image_id: str, tag: str) -> None:
        super().__init__(f"Image {image_id!r} has no label under the tag {tag!r}. Choose one from the list of labels.")


def status_of(error: TotalSpineSegError) -> int:
    """Return the HTTP status that fits an error."""
    if isinstance(error, (UnknownImageError, UnknownLabelError)):
        return NOT_FOUND
    if isinstance(error, (WeightsError, ConflictError)):
        return NOT_READY
    if isinstance(error, BusyError):
        return HELD
    if isinstance(error, SubmissionError):
        return OURS
    return NO_ROOM if isinstance(error, (StorageError, MemoryShortageError)) else UNUSABLE


@contextmanager
def http_errors() -> Iterator[None]:
    """Turn the project's errors into ``HTTPException``, which reaches the client unchanged.

    Raises:
        HTTPException: In place of any ``TotalSpineSegError``.
    """
    try:
        yield
    except TotalSpineSegError as error:
        raise HTTPException(status_of(error), str(error)) from error
