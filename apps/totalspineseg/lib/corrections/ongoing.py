"""Count the submissions in progress, which the end of the server waits for."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

POLL_SECONDS: Final = 0.1


class Ongoing:
    """Counts the submissions in progress in all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one more submission while this block runs."""
        with self._lock:
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1

    async def finish(self, seconds: float) -> bool:
        """Wait until no submission is in progress, at most for these seconds.

        Returns:
            Whether none is in progress.
        """
        deadline = time.monotonic() + seconds
        while self._count and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        return not self._count
