"""Measure the time of stages, if the caller wants it."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Clock = Callable[[str], AbstractContextManager[None]]
"""``with clock("stage"):`` around each stage, for latencies and benchmarks."""


def no_clock(stage: str) -> AbstractContextManager[None]:
    """Return a context that measures nothing."""
    return nullcontext()


class Stopwatch:
    """A ``Clock`` that adds up seconds by stage; one for each scan or request, used by one thread at a time.

    Args:
        on_stage: Called with each stage as it begins.

    Attributes:
        seconds: Stage -> seconds.
    """

    def __init__(self, on_stage: Callable[[str], None] = lambda stage: None) -> None:
        self._start = time.perf_counter()
        self._on_stage = on_stage
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measure a stage; a stage entered twice adds up."""
        self._on_stage(stage)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def as_json(self) -> dict[str, float]:
        """Return stage -> seconds, rounded to milliseconds."""
        return {stage: round(value, 3) for stage, value in self.seconds.items()}

    @property
    def total(self) -> float:
        """The sum over all stages, seconds."""
        return sum(self.seconds.values())

    @property
    def elapsed(self) -> float:
        """Seconds since this was made, including the time between stages."""
        return time.perf_counter() - self._start
