"""Time of the stages, measured by whoever wants to know it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Clock = Callable[[str], AbstractContextManager[None]]
"""``with clock("stage"):`` around each stage, for latencies and benchmarks."""


def no_clock(stage: str) -> AbstractContextManager[None]:
    """A clock that measures nothing."""
    return nullcontext()
