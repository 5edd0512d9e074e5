"""Measure the seconds of each stage of one scan."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """A ``Clock`` that adds up seconds by stage; one for each scan, used by one thread at a time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measure a stage."""
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
