"""Show the progress of a run with the time left."""

import time
from typing import Final, TextIO

BAR_WIDTH: Final = 24


class Progress:
    """Shows how many of ``total`` items are done: in one line on a terminal, elsewhere in a line for each item.

    Args:
        total: Number of items.
        stream: Stream to write to, such as stderr; None to show nothing.
    """

    def __init__(self, total: int, stream: TextIO | None) -> None:
        self._total, self._stream = total, stream
        self._start = time.monotonic()
        self._done = self._skipped = 0
        self._terminal = stream is not None and stream.isatty()

    def advance(self, name: str, failure: str | None = None) -> None:
        """Count one more item."""
        self._done += 1
        if self._stream is None:
            return
        state = f"failed: {failure}" if failure else "done"
        counts = f"{self._done}/{self._total}"
        if not self._terminal:
            self._stream.write(f"[{counts}, {self._left()} left] {name}: {state}\n")
        else:
            self._clear()
            if failure:
                self._stream.write(f"{name}: {state}\n")
            filled = BAR_WIDTH * self._done // max(self._total, 1)
            bar = "#" * filled + "-" * (BAR_WIDTH - filled)
            self._stream.write(f"[{bar}] {counts}  {self._left()} left  {name[:40]}")
        self._stream.flush()

    def skip(self, name: str) -> None:
        """Count an item that was finished before; the estimate of the time left ignores it."""
        self._done += 1
        self._skipped += 1
        if self._stream is not None and not self._terminal:
            self._stream.write(f"[{self._done}/{self._total}] {name}: finished before\n")

    def close(self) -> None:
        """Remove the bar; call this before anything else is written."""
        if self._stream is not None and self._terminal:
            self._clear()
            self._stream.flush()

    def _clear(self) -> None:
        if self._stream is not None:
            self._stream.write("\r\x1b[2K")

    def _left(self) -> str:
        done = max(self._done - self._skipped, 1)
        seconds = (time.monotonic() - self._start) / done * (self._total - self._done)
        return clock_text(seconds)


def clock_text(seconds: float) -> str:
    """Return seconds as "0:42" or "1:02:30"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
