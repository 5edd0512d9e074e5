"""Measure the time of stages, if the caller wants it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Clock = Callable[[str], AbstractContextManager[None]]
"""``with clock("stage"):`` around each stage, for latencies and benchmarks."""


def no_clock(stage: str) -> AbstractContextManager[None]:
    """Return a context that measures nothing."""
    return nullcontext()
