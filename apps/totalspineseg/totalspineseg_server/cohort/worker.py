"""Load the networks of a run, and process scans in a worker process, with networks that stay loaded."""

import logging
from collections.abc import Mapping
from pathlib import Path
from threading import BoundedSemaphore, Event, Lock
from typing import TYPE_CHECKING, Any, Final

from totalspineseg_server.cohort import cohort_messages
from totalspineseg_server.cohort.inputs import Case
from totalspineseg_server.cohort.outputs import REPORTS
from totalspineseg_server.cohort.overlap import sentence
from totalspineseg_server.cohort.record import software_versions
from totalspineseg_server.cohort.work import Networks, RunOptions, Work
from totalspineseg_server.errors import ClusterError, TotalSpineSegError
from totalspineseg_server.registry.model_store import ModelStore

if TYPE_CHECKING:
    from totalspineseg_server.nnunet.networks import Networks as WarmNetworks
    from totalspineseg_server.nnunet.runtimes import Runtime

logger = logging.getLogger(__name__)

SCANS_IN_HAND: Final = 3
"""Largest number of scans in progress: one being read, one in the network, one being written."""
HERE_AND_THERE: Final = ("platform", "python")
"""Software that may differ between machines; software that affects results may not."""

RECORD, FAILURE, REFUSAL, STOPPED = "record", "failure", "refusal", "stopped"
"""Keys of the answer for a scan."""


class ScanWorker:
    """Processes scans in a worker process; the networks are loaded at the first scan.

    Args:
        job: From ``job_json``: plain values, so that nothing of ``totalspineseg_server`` is needed to send them.
    """

    def __init__(self, job: Mapping[str, Any]) -> None:
        self._job = job
        self._work = Work(Path(job["output"]), RunOptions.from_json(job["options"]), dict(job["models"]))
        self._network = Lock()
        self._places = BoundedSemaphore(SCANS_IN_HAND)
        self._stopped = Event()
        self._networks: Networks | None = None

    def segment(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """Process a scan; scans of several threads take turns in the network while others are read and written.

        Args:
            case: From ``Case.as_json``.

        Returns:
            One of ``{"record": ..}``, ``{"failure": sentence}``, ``{"refusal": sentence}`` (this worker cannot process
            any
            scan) and ``{"stopped": True}``.
        """
        scan = Case.from_json(case)
        with self._places:
            try:
                with self._network:
                    networks = self._warm()
            except Exception as error:  # An error here would occur with every scan.
                return {REFUSAL: sentence(error)}
            try:
                return self._segment(scan, networks)
            except Exception as error:  # one bad scan must not stop the rest
                return {FAILURE: sentence(error)}

    def stop(self) -> None:
        """Stop each scan before its next stage; writes that have begun are finished."""
        self._stopped.set()

    def _segment(self, case: Case, networks: Networks) -> dict[str, Any]:
        if self._stopped.is_set():
            return {STOPPED: True}
        loaded = self._work.read(case)
        with self._network:
            if self._stopped.is_set():
                return {STOPPED: True}
            found = self._work.compute(case, loaded, networks)
        if self._stopped.is_set():
            return {STOPPED: True}
        return {RECORD: self._work.write(case, found)}

    def _warm(self) -> Networks:
        """Return the networks, loaded at the first scan.

        Raises:
            ClusterError: This worker would give other results than the machine that sent the job.
            WeightsError: There are no usable weights.
        """
        if self._networks is None:
            self._require_same_place()
            self._networks = self._load()
        return self._networks

    def _load(self) -> Networks:
        if self._job["threads"]:
            import torch

            torch.set_num_threads(self._job["threads"])
        store = ModelStore(self._job["model_dir"], weights=self._job["weights"])
        asked = {name: self._job[name] for name in ("device", "runtime", "whole_image")}
        return warm_networks(store, self._work.versions, **asked)

    def _require_same_place(self) -> None:
        if not (self._work.output / REPORTS).is_dir():
            raise ClusterError(cohort_messages.OUTPUT_NOT_SEEN.format(output=str(self._work.output)))
        here, there = software_versions(), self._job["software"]
        differ = {name for name in {*here, *there} if here.get(name) != there.get(name)} - set(HERE_AND_THERE)
        if differ:
            pairs = ", ".join(f"{name} {there.get(name)} and {here.get(name)}" for name in sorted(differ))
            raise ClusterError(cohort_messages.OTHER_PACKAGES.format(pairs=pairs))


def job_json(
    work: Work, store: ModelStore, *, device: str, runtime: str = "torch", whole_image: bool = False, threads: int
) -> dict[str, Any]:
    """Return the data that a ``ScanWorker`` needs, as plain values.

    Args:
        work: Work for each scan.
        store: The weights in use.
        device: Device of the networks.
        runtime: Software that runs the networks.
        whole_image: See ``Networks``.
        threads: CPU threads of a network; 0 keeps the worker's own setting.
    """
    weights = Path(store.weights).expanduser()
    return {
        "output": str(work.output.resolve()),
        "options": work.options.as_json(),
        "models": dict(work.versions),
        "model_dir": str(store.model_dir.resolve()),
        "weights": str(weights.resolve()) if len(weights.parts) > 1 else store.weights,
        "device": device,
        "runtime": runtime,
        "whole_image": whole_image,
        "threads": threads,
        "software": software_versions(),
    }


def warm_networks(
    store: ModelStore,
    versions: Mapping[str, str],
    *,
    device: str,
    runtime: "Runtime",
    whole_image: bool = False,
) -> "WarmNetworks":
    """Load the networks; nothing before this imports torch in a run.

    Args:
        store: The weights in use.
        versions: "step1", "step2" -> version that must be in use; a step that is not listed is not loaded.
        device: "auto", "cpu", "cuda", "cuda:1".
        runtime: Software that runs the networks.
        whole_image: See ``Networks``.

    Raises:
        ClusterError: Other weights are in use here.
        TotalSpineSegError: There is no such device.
        WeightsError: There are no usable weights.
    """
    from totalspineseg_server.nnunet.networks import Networks as WarmNetworks
    from totalspineseg_server.nnunet.runtimes import resolve_device

    try:
        resolve_device(device, runtime)
    except ValueError as error:
        raise TotalSpineSegError(str(error)) from error
    networks = WarmNetworks(store, device=device, runtime=runtime, whole_image=whole_image)
    for name, version in versions.items():
        found = networks.get(1 if name == "step1" else 2).version
        if found != version:
            raise ClusterError(cohort_messages.OTHER_WEIGHTS.format(found=found, version=version))
    return networks
