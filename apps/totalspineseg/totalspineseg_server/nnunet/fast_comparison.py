"""Compare faster ways of computing with the exact one (float32 in PyTorch, the whole image for step 1) on scans.

A way passes if every level keeps its name in every scan, and the outlines agree. Single voxels always differ: beside a
box there are tiles missing, and without air they may lie elsewhere, as they do when a scan's field of view is shifted.
The exact results are computed once for all ways.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch

from totalspineseg_server import pipeline
from totalspineseg_server.agreement import GROUPS, CaseScore, score_case
from totalspineseg_server.errors import NoSpineError
from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.nnunet.discovery import STEP_CHANNELS
from totalspineseg_server.nnunet.fast_ways import BOX, HALF, INT8, Comparison, Way, openvino_release, release_of
from totalspineseg_server.nnunet.focus import FocusedPredictor
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.openvino_network import keep_int8, load_openvino
from totalspineseg_server.nnunet.predictor import WarmPredictor
from totalspineseg_server.prediction import Packed, Predictor

ROUNDS: Final = 3
"""How often each runtime computes a tile, alternately, when its time is measured."""
TILES: Final = 24
"""Number of tiles of each step that show INT8 the range of values."""
MIN_DICE: Final = 0.95
"""Smallest mean Dice of each group of structures with the exact result. Chosen, not measured."""


@dataclass
class _Rated:
    """The results of one way so far."""

    scores: list[CaseScore] = field(default_factory=list)
    differ: int = 0
    labeled: int = 0
    names_differ: int = 0
    seconds: float = 0.0


def compare_ways(
    models: Mapping[int, ModelFolder],
    scans: Sequence[Callable[[], pipeline.Scan]],
    look: WarmPredictor | None,
    *,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[Comparison, ...]:
    """Compare each way with the exact one; the INT8 networks are stored beside the weights.

    Args:
        models: Step -> model.
        scans: Return the scans, one at a time.
        look: Network that finds the box; None if the weights need no box.
        tell: Called with a line of progress.

    Returns:
        One comparison for each way.

    Raises:
        WeightsError: A network cannot be loaded or converted.
        ImageError: A scan cannot be read.
    """
    recorded = {step: TileRecorder(model.load_network()) for step, model in models.items()}
    exact = {step: _on_cpu(models[step], recorded[step]) for step in models}
    truths, taken = [], _Rated()
    for number, scan in enumerate(scans, start=1):
        tell(f"exact result of scan {number} of {len(scans)}")
        with _timed(taken):
            labels = labels_of(scan(), exact[1], exact[2])
        truths.append(Packed.of(labels))
    ways: dict[Way, Callable[[], tuple[Predictor, Predictor]]] = {}
    if look is not None:
        ways[BOX] = lambda: (FocusedPredictor(exact[1], look), FocusedPredictor(exact[2], None))
    if openvino_release() or not torch.cuda.is_available():
        ways[INT8] = lambda: _int8(models, recorded, tell)
    else:
        tell("leaving out INT8, because OpenVINO is not installed")
    if torch.cuda.is_available():
        ways[HALF] = lambda: _half(models)
    return tuple(_compared(way, make(), scans, truths, taken.seconds / len(scans), tell) for way, make in ways.items())


def seconds_by_runtime(model: ModelFolder) -> dict[str, float]:
    """Return runtime -> seconds of a tile, the fastest of some rounds; the network is converted if it was not before.

    Args:
        model: The model.

    Raises:
        WeightsError: A network cannot be loaded or converted.
    """
    generator = torch.Generator().manual_seed(0)
    tile = torch.randn(1, STEP_CHANNELS[model.step], *model.patch, generator=generator)
    networks = {"torch": model.load_network(), "openvino": load_openvino(model)}
    seconds = dict.fromkeys(networks, float("inf"))
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for name, network in networks.items():
                start = time.perf_counter()
                network(tile)
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return {name: round(value, 3) for name, value in seconds.items()}


class TileRecorder(torch.nn.Module):  # type: ignore[misc]
    """Runs a network, and stores a few of the tiles of each scan.

    Args:
        network: The network.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self._network = network
        self._random = np.random.default_rng(0)
        self._seen = 0
        self.tiles: list[torch.Tensor] = []

    def forward(self, tile: torch.Tensor) -> torch.Tensor:
        """Return the logits of one tile (1, C, *patch)."""
        self._seen += 1
        # Each tile so far is stored with the same chance, and memory stays bounded.
        if len(self.tiles) < TILES:
            self.tiles.append(tile.clone())
        elif (place := int(self._random.integers(self._seen))) < TILES:
            self.tiles[place] = tile.clone()
        return self._network(tile)


@contextmanager
def _timed(rated: _Rated) -> Iterator[None]:
    start = time.perf_counter()
    yield
    rated.seconds += time.perf_counter() - start


def _on_cpu(model: ModelFolder, network: torch.nn.Module) -> WarmPredictor:
    return WarmPredictor(model, device="cpu", network=network)


def _half(models: Mapping[int, ModelFolder]) -> tuple[Predictor, Predictor]:
    one, two = (WarmPredictor(models[step], device="cuda", runtime=HALF) for step in (1, 2))
    return one, two


def _int8(
    models: Mapping[int, ModelFolder], recorded: Mapping[int, TileRecorder], tell: Callable[[str], None]
) -> tuple[Predictor, Predictor]:
    networks = []
    for step, model in models.items():
        tell(f"converting step {step} to INT8")
        networks.append(_on_cpu(model, keep_int8(model, recorded[step].tiles)))
    return networks[0], networks[1]


def _compared(
    way: Way,
    predictors: tuple[Predictor, Predictor],
    scans: Sequence[Callable[[], pipeline.Scan]],
    truths: Iterable[Packed],
    seconds_exact: float,
    tell: Callable[[str], None],
) -> Comparison:
    rated = _Rated()
    for number, (scan, truth) in enumerate(zip(scans, truths, strict=True), start=1):
        tell(f"{way}: scan {number} of {len(scans)}")
        with _timed(rated):
            labels = labels_of(scan(), *predictors)
        exact = truth.unpacked()
        score = score_case(exact, labels)
        rated.scores.append(score)
        rated.differ += int(np.count_nonzero(exact != labels))
        rated.labeled += int(np.count_nonzero(exact))
        rated.names_differ += score.levels_right < score.levels or bool(labels.any()) != bool(exact.any())
    differ = rated.differ / max(rated.labeled, 1)
    values = {group: [score.dice[group] for score in rated.scores] for group in GROUPS}
    means = {group: float(np.nanmean(some)) for group, some in values.items() if not np.isnan(some).all()}
    agrees = min(means.values(), default=0) >= MIN_DICE
    return Comparison(
        way,
        len(scans),
        rated.names_differ,
        differ,
        means,
        rated.seconds / len(scans),
        seconds_exact,
        passed=agrees and not rated.names_differ,
        release=release_of(way),
    )


def labels_of(scan: pipeline.Scan, step1: Predictor, step2: Predictor) -> LabelArray:
    """Return the codes of a scan on its 1 mm grid; all 0 if no spine is found, which is a result like any other.

    Args:
        scan: From ``pipeline.prepare``.
        step1: The network of step 1.
        step2: The network of step 2.
    """
    try:
        return pipeline.finish(pipeline.locate(scan, step1), step2).labels
    except NoSpineError:
        return np.zeros(scan.iso.data.shape, np.uint8)
