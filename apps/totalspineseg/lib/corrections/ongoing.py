"""Submissions under way, which the end of the server waits for."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LOOK_SECONDS: Final = 0.1


class Ongoing:
    """Counts what is under way in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """One more is under way in this block."""
        with self._lock:
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1

    async def finish(self, seconds: float) -> bool:
        """Wait until nothing is under way, at most so long.

        Returns:
            Whether all is done.
        """
        deadline = time.monotonic() + seconds
        while self._count and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS)
        return not self._count
