"""Define the app with the work of the official networks on every tile, and the labels of the starter networks."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from totalspineseg_server.app import App as RealApp
from totalspineseg_server.geometry import FloatArray
from totalspineseg_server.nnunet.networks import Networks
from totalspineseg_server.nnunet.predictor import WarmPredictor
from totalspineseg_server.prediction import Prediction
from totalspineseg_server.registry.model_store import STARTER, ModelStore

_APP = Path(__file__).resolve().parents[2] / "apps" / "totalspineseg"


class Both:
    """A predictor with the work of one network and the labels of the other.

    Args:
        work: With random weights.
        labels: The starter network of the same step.
    """

    def __init__(self, work: WarmPredictor, labels: WarmPredictor) -> None:
        self.work, self.labels, self.version = work, labels, work.version

    def predict(self, channels: FloatArray, *, soft: Collection[str] = ()) -> Prediction:
        """Return the starter network's labels and soft maps, after all the work of the other network."""
        self.work.predict(channels, soft=soft)
        return self.labels.predict(channels, soft=soft)


class Pairs(Networks):
    """The networks in use, each with the starter network of its step."""

    def __init__(self, store: ModelStore) -> None:
        super().__init__(store, device="cpu")
        self._labels = Networks(ModelStore(_APP / "model", weights=STARTER), device="cpu")

    def get(self, step: int) -> Any:
        return Both(super().get(step), self._labels.get(step))

    def warm_up(self) -> None:
        """Load the networks at the first request, which is what is measured."""


class MONAILabelApp(RealApp):
    """Has this name because MONAI Label looks for a direct child of such a class, and then finds the one below."""

    def make_networks(self, app_dir: Path, conf: dict[str, str]) -> Pairs:
        return Pairs(ModelStore(app_dir / "model"))


class App(MONAILabelApp):
    """The app that MONAI Label loads."""
