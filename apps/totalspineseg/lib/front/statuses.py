"""HTTP statuses of the front, besides those for errors of the tasks (``lib.infers.http``)."""

from typing import Final

OK: Final = 200
NOT_MODIFIED: Final = 304
BAD_REQUEST: Final = 400
FORBIDDEN: Final = 403
READ_ONLY: Final = 405
SESSIONS_OFF: Final = 406
CONFLICT: Final = 409
TOO_LARGE: Final = 413
BUSY: Final = 429
"""The requested work is already running; the host answers a second training the same way."""
UPSTREAM: Final = 502
"""A server behind this one did not answer, or answered wrongly."""
