"""Give all inference tasks the same networks, labels and records."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from totalspineseg_server.corrections.datastore import SpineDatastore
from totalspineseg_server.corrections.predictions import DrawnMaps, PredictionStore
from totalspineseg_server.infers.inference_progress import Progress
from totalspineseg_server.infers.settings import DoubtfulNames
from totalspineseg_server.prediction import Predictor


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
    maps: DrawnMaps
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
