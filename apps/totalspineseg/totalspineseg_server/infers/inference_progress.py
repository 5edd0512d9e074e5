"""Report the progress of the current inference, for clients that display it."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

STAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "": "Fetching the scan",
        "read image": "Reading the scan",
        "resample to 1 mm": "Resampling the scan to 1 mm",
        "step 1 network": "Step 1: finding discs, cord and canal",
        "levels": "Naming the levels",
        "step 2 network": "Step 2: outlining each vertebra",
        "back to the scan": "Putting the result on the scan's voxels",
        "lint": "Checking the result",
        "write result": "Sending the result",
    }
)
"""Stages that readers see, in order -> the text for each."""


@dataclass(frozen=True)
class Running:
    """The current inference.

    Attributes:
        model: Name of the model.
        image: Image id; empty outside the studies.
        started: Monotonic time, seconds.
        stage: One of ``STAGES``.
    """

    model: str
    image: str
    started: float
    stage: str = ""


class Progress:
    """The current inference: one at a time. Several threads may read it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: Running | None = None

    @contextmanager
    def of(self, model: str, image: str) -> Iterator[None]:
        """Record that an inference runs, until it ends.

        Args:
            model: Name of the model.
            image: Image id; empty outside the studies.
        """
        with self._lock:
            self._running = Running(model, image, time.monotonic())
        try:
            yield
        finally:
            with self._lock:
                self._running = None

    def enter(self, stage: str) -> None:
        """Record that a stage has begun; a stage that readers do not see is part of the one before it."""
        with self._lock:
            if self._running is not None and stage in STAGES:
                self._running = replace(self._running, stage=stage)

    def as_json(self) -> dict[str, Any] | None:
        """Return the current inference: model, image, stage in words, its number, number of stages, seconds. None if
        none runs."""
        with self._lock:
            running = self._running
        if running is None:
            return None
        return {
            "model": running.model,
            "image": running.image,
            "stage": STAGES[running.stage],
            "place": list(STAGES).index(running.stage) + 1,
            "stages": len(STAGES),
            "seconds": round(time.monotonic() - running.started, 1),
        }
