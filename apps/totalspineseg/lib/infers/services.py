"""Services that inference tasks share: the networks, the labels, the records."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from lib.corrections.drawn_maps import DrawnMaps
from lib.corrections.predictions import PredictionStore
from lib.prediction import Predictor


class Networks(Protocol):
    """Holds the loaded predictor of each step."""

    def get(self, step: Literal[1, 2]) -> Predictor:
        """Return the predictor, loaded on first use.

        Raises:
            WeightsError: There are no usable weights.
        """

    def version(self, step: Literal[1, 2]) -> str:
        """Return what ``get(step).version`` would, without loading the network.

        Raises:
            WeightsError: There are no usable weights.
        """

    def warm_up(self) -> None:
        """Load both networks.

        Raises:
            WeightsError: There are no usable weights.
        """

    def free(self) -> None:
        """Drop all predictors and the memory they hold; the next ``get`` loads again."""


@dataclass(frozen=True)
class Services:
    """Services that inference tasks share.

    Attributes:
        networks: The loaded predictors.
        predictions: Records of predictions.
        maps: Maps of the networks, stored for a while.
        siblings: ``siblings(image_id)`` returns other images of the same patient that share its coordinates.
        label_file: ``label_file(image_id, tag)`` returns the label map (wire ids) of an image under a tag, or None.
        label_info: ``label_info(image_id, tag)`` returns the information about that label; a prediction's has
        ``params``.
        image_file: ``image_file(image_id)`` returns the file or folder of an image of the studies, or None.
        weights_text: Returns one sentence on the weights in use, without loading them.
        same_space: ``same_space(image_id, other)`` returns whether the coordinates of two images can be compared.
        lock: Held while the networks work: one inference at a time.
    """

    networks: Networks
    predictions: PredictionStore
    maps: DrawnMaps
    siblings: Callable[[str], Sequence[str]]
    label_file: Callable[[str, str], Path | None]
    label_info: Callable[[str, str], Mapping[str, Any]]
    image_file: Callable[[str], Path | None]
    weights_text: Callable[[], str]
    same_space: Callable[[str, str], bool] = lambda one, other: True
    lock: threading.Lock = field(default_factory=threading.Lock)


def pair_in_use(networks: Networks) -> tuple[Predictor, Predictor]:
    """Return the predictors of step 1 and 2 that were in use together.

    A version may be activated between the two calls: then the first is of the old pair and the second of the new one,
    and
    nobody judged how they work together.

    Raises:
        WeightsError: There are no usable weights.
    """
    step1, step2 = networks.get(1), networks.get(2)
    while (again := networks.get(1)).version != step1.version:
        step1, step2 = again, networks.get(2)
    return step1, step2
