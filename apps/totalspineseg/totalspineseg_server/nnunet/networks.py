"""Keep one loaded predictor for each step, and replace it when another version is published."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock

from totalspineseg_server.nnunet.discovery import STEP_CHANNELS, TRUST_FILE
from totalspineseg_server.nnunet.fast_ways import BOX, is_allowed, record_files
from totalspineseg_server.nnunet.focus import FocusedPredictor, is_worth_a_look
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.predictor import WarmPredictor
from totalspineseg_server.nnunet.runtimes import AUTO, AskedRuntime, Runtime, chosen, openvino_is_faster, with_runtime
from totalspineseg_server.registry.model_store import STARTER, ModelStore
from totalspineseg_server.registry.releases import require_one_release

logger = logging.getLogger(__name__)

Stamp = tuple[tuple[str, int, int, int], ...]


AnyPredictor = WarmPredictor | FocusedPredictor


@dataclass(frozen=True)
class _Opened:
    """A model folder with its name, location and files when it was opened, and the runtime that computes it."""

    folder: ModelFolder
    key: tuple[str, Path, Stamp]
    runtime: Runtime
    in_box: bool


class Networks:
    """The networks of a server: loaded at first use, kept, and replaced when the registry's choice changes.

    Constructing it reads no file and uses no device.

    Args:
        store: The model versions and those in use.
        device: See ``WarmPredictor``.
        runtime: The user's choice, or what was chosen for a run; see ``runtimes.chosen``.
        whole_image: Whether step 1 always gets the whole image, even if a box around the spine was compared with it.
    """

    def __init__(
        self,
        store: ModelStore,
        *,
        device: str = "auto",
        runtime: AskedRuntime | Runtime = "torch",
        whole_image: bool = False,
    ) -> None:
        self.store = store
        self._asked = runtime
        self._whole_image = whole_image
        self._device = device
        self._lock = RLock()
        self._loading = {step: RLock() for step in STEP_CHANNELS}
        self._opened: dict[int, _Opened] = {}
        self._warm: dict[int, tuple[_Opened, AnyPredictor]] = {}
        self._loads: dict[int, int] = {}

    @property
    def loads(self) -> Mapping[int, int]:
        """Step -> how often its weights were read; requests to a loaded network do not change it."""
        with self._lock:
            return dict(self._loads)

    def folder(self, step: int) -> ModelFolder:
        """Return the model in use for a step without loading its network, for descriptions.

        Its ``version`` reads the files once.

        Raises:
            WeightsError: There is no usable model folder.
        """
        with self._lock:
            return self._open(step).folder

    def version(self, step: int) -> str:
        """Return ``get(step).version`` without loading the network.

        Raises:
            WeightsError: There is no usable model folder.
        """
        with self._lock:
            opened = self._open(step)
        return with_runtime(opened.folder.version, opened.runtime)

    def get(self, step: int) -> AnyPredictor:
        """Return the predictor of a step; it is loaded already if the same version was used before.

        A replaced predictor stays valid for those who still use it.

        Args:
            step: 1 or 2.

        Raises:
            WeightsError: There is no usable model.
        """
        _, predictor = self._known(step)
        if predictor is not None:
            return predictor
        # Use a separate lock, because loading (and even more so converting) must not delay descriptions.
        with self._loading[step]:
            opened, predictor = self._known(step)
            if predictor is not None:
                return predictor
            fine = WarmPredictor(opened.folder, device=self._device, runtime=opened.runtime)
            look = coarse_look(self.store, self._device) if opened.in_box and step == 1 else None
            predictor = FocusedPredictor(fine, look) if opened.in_box else fine
            with self._lock:
                self._warm[step] = opened, predictor
                self._loads[step] = self._loads.get(step, 0) + 1
            logger.info("Loaded step %d network %s on %s", step, predictor.version, fine.device)
            return predictor

    def warm_up(self) -> None:
        """Load both networks and run each once, so that the first request is as fast as later ones.

        With the runtime "auto", a network that OpenVINO computes faster is converted now, if it was not before.

        Raises:
            WeightsError: There is no usable model.
        """
        for step in STEP_CHANNELS:
            folder = self.folder(step)
            if self._asked == AUTO and openvino_is_faster(self._device, folder.path):
                WarmPredictor(folder, device="cpu", runtime="openvino")
                with self._lock:
                    self._opened.pop(step, None)
            self.get(step).warm_up()

    def free(self) -> None:
        """Release all networks and their GPU memory, for instance when a training starts."""
        with self._lock:
            dropped = [predictor for _, predictor in self._warm.values()]
            self._warm.clear()
        for predictor in dropped:
            predictor.retire()

    def _known(self, step: int) -> tuple[_Opened, AnyPredictor | None]:
        """Return the model in use, and its predictor if that is loaded."""
        with self._lock:
            opened = self._open(step)
            warm = self._warm.get(step)
            return opened, warm[1] if warm is not None and warm[0] == opened else None

    def _open(self, step: int) -> _Opened:
        """Open the model in use; it is opened again only if the choice or a file has changed."""
        choice = self.store.resolve(step)
        known = self._opened.get(step)
        if known is not None and known.key == (choice.name, choice.root, _stamp(known.folder)):
            return known
        if not self.store.weights:
            require_one_release(self.store, self.store.active())
        folder = ModelFolder.open(choice.root, step=step, name=choice.name)
        runtime = chosen(self._asked, self._device, folder)
        in_box = not self._whole_image and may_use_box(folder)
        opened = _Opened(folder, (choice.name, choice.root, _stamp(folder)), runtime, in_box)
        self._opened[step] = opened
        return opened


def may_use_box(folder: ModelFolder) -> bool:
    """Return whether a box around the spine, without air, was compared with the whole image, and is worth it."""
    return is_worth_a_look(folder) and is_allowed(folder, BOX)


def coarse_look(store: ModelStore, device: str) -> WarmPredictor:
    """Return the network that finds the box: step 1 of the starter weights, on the image without its mirror image.

    Args:
        store: The model versions.
        device: See ``WarmPredictor``.

    Raises:
        WeightsError: The starter weights are missing.
    """
    folder = ModelFolder.open(store.named(STARTER).root, step=1, name=STARTER)
    return WarmPredictor(folder, device=device, trust=replace(folder.trust, mirror=False))


def _stamp(folder: ModelFolder) -> Stamp:
    """Return a value that changes whenever a file of the model is replaced or changed; empty if one is missing."""
    files = (folder.path / "plans.json", folder.path / "dataset.json", folder.checkpoint)
    try:
        beside = (folder.path / TRUST_FILE, *record_files(folder.path))
        present = (*files, *(file for file in beside if file.is_file()))
        return tuple((file.name, (s := file.stat()).st_ino, s.st_mtime_ns, s.st_size) for file in present)
    except OSError:
        return ()
