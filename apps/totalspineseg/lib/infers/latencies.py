"""Measure how long each stage of a request takes."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager


class Latencies:
    """Collects seconds by stage; the object itself is the clock for the pipeline."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def __call__(self, stage: str) -> AbstractContextManager[None]:
        """Measure a stage; a stage entered twice adds up."""
        return self._measure(stage)

    @contextmanager
    def _measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - start

    def as_json(self) -> dict[str, float]:
        """Return seconds by stage and in total, rounded to milliseconds."""
        total = {"total": time.perf_counter() - self._start}
        return {stage: round(seconds, 3) for stage, seconds in (self._seconds | total).items()}
