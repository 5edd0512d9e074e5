"""Choose the HTTP status for each kind of error."""

from typing import Final

from totalspineseg_server.errors import (
    BusyError,
    ConflictError,
    MemoryShortageError,
    StorageError,
    SubmissionError,
    TooLargeError,
    TotalSpineSegError,
    UnknownImageError,
    WeightsError,
)
from totalspineseg_server.infers import infers_messages

OK: Final = 200
NO_CONTENT: Final = 204
NOT_MODIFIED: Final = 304
BAD_REQUEST: Final = 400
FORBIDDEN: Final = 403
READ_ONLY: Final = 405
SESSIONS_OFF: Final = 406
CONFLICT: Final = 409
BUSY: Final = 429
"""The requested work is already running; MONAI Label answers a second training the same way."""
UPSTREAM: Final = 502
"""A server behind this one did not answer, or answered wrongly."""
UNUSABLE: Final = 422
"""The image, label or setting that was sent cannot be used."""
NOT_READY: Final = 409
"""The server lacks something the request needs, and its owner can change that."""
NO_ROOM: Final = 507
HELD: Final = 503
"""The same request may succeed a little later."""
NOT_FOUND: Final = 404
TOO_LARGE: Final = 413
OURS: Final = 500
"""The server itself failed."""


class UnknownLabelError(TotalSpineSegError):
    """An image has no label under this tag."""

    def __init__(self, image_id: str, tag: str) -> None:
        super().__init__(infers_messages.NO_LABEL.format(image=image_id, tag=tag))


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
    if isinstance(error, TooLargeError):
        return TOO_LARGE
    return NO_ROOM if isinstance(error, (StorageError, MemoryShortageError)) else UNUSABLE
