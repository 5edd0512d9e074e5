"""Give all inference tasks the same networks, labels and records, and one report of the current inference."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol

from totalspineseg_server.corrections.datastore import SpineDatastore
from totalspineseg_server.corrections.predictions import MapStore, PredictionStore
from totalspineseg_server.infers.settings import DoubtfulNames
from totalspineseg_server.prediction import Predictor

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


class Model(Protocol):
    """A model in use."""

    @property
    def name(self) -> str:
        """The name of its version."""


class Networks(Protocol):
    """Loads the predictor of each step and keeps it."""

    def folder(self, step: Literal[1, 2]) -> Model:
        """Return the model in use, without loading the network.

        Raises:
            WeightsError: There are no usable weights.
        """

    def get(self, step: Literal[1, 2]) -> Predictor:
        """Return the predictor, loaded on first use.

        Raises:
            WeightsError: There are no usable weights.
        """

    def version(self, step: Literal[1, 2]) -> str:
        """Return the same as ``get(step).version``, without loading the network.

        Raises:
            WeightsError: There are no usable weights.
        """

    def warm_up(self) -> None:
        """Load both networks.

        Raises:
            WeightsError: There are no usable weights.
        """

    def free(self) -> None:
        """Release all predictors and their memory; the next ``get`` loads them again."""


@dataclass(frozen=True)
class Services:
    """Services that inference tasks share.

    Attributes:
        networks: The loaded predictors.
        predictions: Records of predictions.
        maps: Maps of the networks, kept for a while.
        studies: Images and displayed labels.
        weights_text: Returns one sentence on the weights in use, without loading them.
        doubtful_names: How replies name doubtful levels if the request does not say so.
        progress: Progress of the current inference.
        lock: Held while the networks work: one inference at a time.
    """

    networks: Networks
    predictions: PredictionStore
    maps: MapStore
    studies: SpineDatastore
    weights_text: Callable[[], str]
    doubtful_names: DoubtfulNames = "marked"
    progress: Progress = field(default_factory=Progress)
    lock: threading.Lock = field(default_factory=threading.Lock)


def pair_in_use(networks: Networks) -> tuple[Predictor, Predictor]:
    """Return the predictors of steps 1 and 2 that were in use together.

    A version may be activated between the two calls: then the first belongs to the old pair and the second to the new
    one, and the gate has not judged these two together.

    Raises:
        WeightsError: There are no usable weights.
    """
    step1, step2 = networks.get(1), networks.get(2)
    while (again := networks.get(1)).version != step1.version:
        step1, step2 = again, networks.get(2)
    return step1, step2
