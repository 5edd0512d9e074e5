"""Run one request in this process as the server does, and time the networks separately."""

import time
from pathlib import Path

import local_server  # noqa: F401  (puts the package on the path)
import torch

from totalspineseg_server import pipeline
from totalspineseg_server.io.volumes import read_image, write_volume
from totalspineseg_server.nnunet.networks import Networks
from totalspineseg_server.numbering.linter import lint
from totalspineseg_server.prediction import Predictor
from totalspineseg_server.segments import to_wire


def warm_request(scan: Path, networks: Networks, result: Path) -> tuple[float, float]:
    """Return the seconds of the whole request, and of the forward passes in it.

    Args:
        scan: The image.
        networks: Loaded networks.
        result: File for the labels.
    """
    clock = ForwardClock()
    step1, step2 = networks.get(1), networks.get(2)
    handles = [hook for warm in (step1, step2) for hook in clock.attach(warm._network)]
    start = time.perf_counter()
    serve(scan, step1, step2, result)
    seconds = time.perf_counter() - start
    for handle in handles:
        handle.remove()
    return seconds, clock.seconds


def serve(scan: Path, step1: Predictor, step2: Predictor, result: Path) -> None:
    """Do what the server does for one request, from the image's file to the labels' file."""
    prepared = pipeline.prepare(read_image(scan))
    located = pipeline.locate(prepared, step1)
    found = pipeline.finish(located, step2)
    lint(found.labels, prepared.iso.spacing)
    write_volume(result, prepared.labels_to_input(to_wire(found.labels)), prepared.grid)


class ForwardClock:
    """Adds up the seconds of forward passes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def attach(self, network: torch.nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        """Measure a network; the returned handles remove the measurement."""
        return [network.register_forward_pre_hook(self._begin), network.register_forward_hook(self._end)]

    def _begin(self, *_: object) -> None:
        _synchronize()
        self._start = time.perf_counter()

    def _end(self, *_: object) -> None:
        _synchronize()
        self.seconds += time.perf_counter() - self._start


def _synchronize() -> None:
    """Wait for a GPU, which continues to work while the program runs on."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
