"""Train the starter weights on synthetic spines and scans of people, in nnU-Net's own folder format.

The training needs only PyTorch, nnU-Net, numpy and scipy.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate, pad
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from totalspineseg_server.errors import WeightsError
from totalspineseg_server.files import sha256_of, write_json
from totalspineseg_server.nnunet import nnunet_messages
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.odd_channel import EXACT_CHANNEL_SHARE, FOUND_CHANNEL_SHARE
from totalspineseg_server.nnunet.real_spines import RealSpine
from totalspineseg_server.nnunet.starter_batches import samples
from totalspineseg_server.nnunet.starter_model import (
    build_network,
    draws_outlines,
    export_model,
    warm_start,
    write_checkpoint,
)
from totalspineseg_server.nnunet.starter_plans import (
    CHECKPOINT,
    GRIDS,
    STARTER_FOLDERS,
    STRIDES,
    StarterSettings,
    regions_of,
)
from totalspineseg_server.nnunet.training import computes_in_half, deep_loss

LIKELY = 0.5
_DISC = "disc"
logger = logging.getLogger(__name__)

Batch: TypeAlias = list[torch.Tensor]
"""Channels (B, C, Z, Y, X), region shares (B, R, Z, Y, X), and where found discs are marked (B, 1, Z, Y, X): nowhere in
patches that keep their synthetic discs."""
FOUND_EVERY = round(1 / ((1 - EXACT_CHANNEL_SHARE) * FOUND_CHANNEL_SHARE))
"""One in this many patches of step 2 is marked with the discs that step 1 finds in it."""
WEIGHT_DECAY = 1e-4
POLY_POWER = 0.9
MAX_GRADIENT_NORM = 12.0
EARLY_PATCH_SHARE = 3
"""Quarters of the patch's sides in the early phase, rounded up to a multiple of the strides."""
SAVE_EVERY_S = 120.0
LOG_EVERY = 25
_RESUMED_APART, _WORKERS_APART = 7919, 104_729
"""Primes that separate the random streams of resumed calls and of workers."""


class StarterFinder:
    """A step-1 network that marks discs in training patches.

    Args:
        folder: A step-1 starter model.
        device: Device of the training.

    Raises:
        WeightsError: There is no such model.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        model = ModelFolder.open(folder, step=1)
        self.sha256 = sha256_of(model.checkpoint)
        self._network = model.load_network().to(device)
        self._spacing = model.spacing_mm
        self._channel = model.regions.index(_DISC)

    def mark(self, channels: torch.Tensor, near_marked: torch.Tensor) -> torch.Tensor:
        """Replace synthetic discs by found ones.

        Args:
            channels: Image and marked discs, float32 (B, 2, Z, Y, X). Not modified.
            near_marked: Where a found disc is one of the marked set, bool (B, 1, Z, Y, X).

        Returns:
            Channels with the found discs of the marked set; unchanged where no disc was found, because odd and even
            could not be told apart without marks.
        """
        found = (self._chance(channels[:, :1]) > LIKELY) & near_marked
        seen = found.flatten(1).any(1).view(-1, 1, 1, 1, 1)
        return torch.cat([channels[:, :1], torch.where(seen, found.to(channels.dtype), channels[:, 1:])], 1)

    def _chance(self, image: torch.Tensor) -> torch.Tensor:
        """Return the probability of a disc on step 2's grid, computed on step 1's; image and result (B, 1, Z, Y, X)."""
        shape = zip(image.shape[2:], GRIDS[2].spacing_mm, self._spacing, strict=True)
        size = [max(1, round(n * fine / coarse)) for n, fine, coarse in shape]
        missing = [-n % int(f) for n, f in zip(size, np.prod(STRIDES, axis=0), strict=True)]
        seen = interpolate(image, size, mode="trilinear")
        with torch.no_grad():
            logits = self._network(pad(seen, [n for lost in reversed(missing) for n in (0, lost)]))
        discs = logits[:, self._channel : self._channel + 1, : size[0], : size[1], : size[2]]
        return torch.sigmoid(interpolate(discs.float(), image.shape[2:], mode="trilinear"))


class _Run:
    """One training run: network, running mean, optimizer and progress."""

    def __init__(self, step: int, settings: StarterSettings) -> None:
        self.step, self.settings, self.device = step, settings, torch.device(settings.device)
        self.network = build_network(step, settings.features, deep_supervision=True).to(self.device)
        if settings.outlines_only:
            for name, weight in self.network.named_parameters():
                weight.requires_grad_(draws_outlines(name))
        self.mean = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        rate = settings.learning_rate
        self.optimizer = torch.optim.AdamW(self.network.parameters(), rate, weight_decay=WEIGHT_DECAY)
        self.origin: str | None = None
        self.finder: StarterFinder | None = None
        self.finders: list[str] = []
        self.cases: list[str] = []
        self.iteration, self.seconds, self.losses = 0, 0.0, list[float]()

    def begin_from(self, folder: Path) -> None:
        """Start from the weights of a starter model; a step-2 network takes the weights of step 1 that fit."""
        file = folder / CHECKPOINT
        known = torch.load(file, map_location=self.device, weights_only=True)["network_weights"]
        self.network.load_state_dict(warm_start(self.network.state_dict(), known))
        self.mean = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.origin = sha256_of(file)

    def mark_by(self, finder: StarterFinder) -> None:
        """Let a step-1 network mark patches from now on, and record it with those of earlier calls."""
        self.finder = finder
        if finder.sha256 not in self.finders:
            self.finders.append(finder.sha256)

    def train_on(self, batch: Batch, progress: float) -> float:
        rate = self.settings.learning_rate * max(1 - progress, 1e-3) ** POLY_POWER
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, (self.iteration + 1) / self.settings.warm_up)
        inputs, target, near = (part.to(self.device, non_blocking=True) for part in batch)
        if self.finder is not None:
            chosen = near.flatten(1).any(1)
            if chosen.any():
                inputs[chosen] = self.finder.mark(inputs[chosen], near[chosen])
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=computes_in_half(self.device)):
            logits = self.network(inputs)
        loss = deep_loss([level.float() for level in logits], target)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.iteration += 1
        decay = min(self.settings.ema_decay, (1 + self.iteration) / (10 + self.iteration))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                self.mean[name].lerp_(value, 1 - decay)
        self.losses.append(float(loss.detach()))
        return self.losses[-1]

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "mean": self.mean,
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "losses": self.losses,
            "origin": self.origin or "",
            "finders": self.finders,
            "cases": self.cases,
            "spacing_mm": GRIDS[self.step].spacing_mm,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            WeightsError: The network of the state was trained on another grid.
        """
        grid, was = GRIDS[self.step].spacing_mm, tuple(state.get("spacing_mm", GRIDS[1].spacing_mm))  # older: one grid
        if was != grid:
            raise WeightsError(nnunet_messages.OTHER_GRID.format(grid=grid, stored=was))
        self.network.load_state_dict(state["network"])
        self.mean = {k: v.to(self.device) for k, v in state["mean"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration, self.seconds, self.losses = state["iteration"], state["seconds"], state["losses"]
        self.origin = state.get("origin") or None
        self.finders = list(state.get("finders", ()))  # older states have none
        self.cases = list(state.get("cases", ()))


def _early_patch(patch: tuple[int, ...]) -> tuple[int, ...]:
    factors = np.prod(STRIDES, axis=0)
    return tuple(int(-(-EARLY_PATCH_SHARE * n // (4 * f)) * f) for n, f in zip(patch, factors, strict=True))


class _Stream(IterableDataset[tuple[torch.Tensor, ...]]):  # type: ignore[misc]  # untyped in torch
    """Training examples without end, with a separate stream in each worker."""

    def __init__(
        self,
        step: int,
        seed: int,
        patch: tuple[int, ...],
        settings: StarterSettings,
        near_every: int | None,
        real: Sequence[RealSpine],
    ) -> None:
        self.step, self.seed, self.patch, self.settings = step, seed, patch, settings
        self.near_every, self.real = near_every, real

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        worker = get_worker_info()
        seed = self.seed + _WORKERS_APART * (worker.id if worker is not None else 0)
        for sample in samples(
            self.step,
            seed,
            self.patch,
            pool_size=self.settings.pool_size,
            uses_per_spine=self.settings.uses_per_spine,
            near_every=self.near_every,
            real=self.real,
            real_share=self.settings.real_share,
        ):
            yield sample.channels, sample.regions, sample.near_marked


def _batches(
    step: int,
    seed: int,
    patch: tuple[int, ...],
    settings: StarterSettings,
    *,
    near_every: int | None = None,
    real: Sequence[RealSpine] = (),
) -> Iterator[Batch]:
    stream = _Stream(step, seed, patch, settings, near_every, real)
    yield from DataLoader(stream, batch_size=settings.batch_size, num_workers=settings.workers)


def train_starter(
    step: int,
    out_dir: Path,
    settings: StarterSettings | None = None,
    *,
    resume: bool = True,
    start_from: Path | None = None,
    discs_by: Path | None = None,
    real: Sequence[RealSpine] = (),
) -> Path:
    """Train one step's starter model; it may be stopped at any moment and called again.

    Args:
        step: 1 or 2.
        out_dir: The starter folder; the model is written to its usual place below.
        settings: Settings of the training; None for the defaults.
        resume: Whether to continue from the state of an earlier call.
        start_from: Starter model to begin with if there is no state; step 2 may begin with a step-1 model.
        discs_by: Step-1 starter model that finds the marked discs in every second patch of step 2; None to use only
            synthetic discs.
        real: Scans of people from which patches are also taken.

    Returns:
        The model folder.

    Raises:
        ValueError: The step is neither 1 nor 2.
        WeightsError: There is no model at ``discs_by``, or the state was trained on another grid.
    """
    regions_of(step)
    settings = settings or StarterSettings()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    folder = Path(out_dir) / STARTER_FOLDERS[step]
    latest = folder / "fold_0" / "checkpoint_latest.pth"
    run = _Run(step, settings)
    if resume and latest.is_file():
        run.restore(torch.load(latest, map_location=settings.device, weights_only=True))
    elif start_from is not None:
        run.begin_from(start_from)
    if discs_by is not None and step == 2:
        run.mark_by(StarterFinder(discs_by, run.device))
    run.cases = sorted({*run.cases, *(case.sha256 for case in real)})
    start = settings.seed + _RESUMED_APART * run.iteration  # a new part of the stream after each resumption
    near_every = FOUND_EVERY if run.finder is not None else None
    patch = settings.patch_of(step)
    early = _batches(step, start, _early_patch(patch), settings, near_every=near_every, real=real)
    stream = _batches(step, start + 1, patch, settings, near_every=near_every, real=real)
    saved = began = time.monotonic()
    before = run.seconds
    while True:
        now = time.monotonic()
        run.seconds = before + now - began
        progress = _progress(run, settings)
        over = progress >= 1 or (settings.piece_minutes is not None and now - began >= 60 * settings.piece_minutes)
        if over or now - saved > SAVE_EVERY_S:
            _save(run, folder, latest)
            saved = now
        if over:
            return folder
        run.train_on(next(early if progress < settings.early_phase else stream), progress)
        if run.iteration % LOG_EVERY == 0:
            recent = float(np.mean(run.losses[-100:]))
            logger.info("step %d iteration %d loss %.4f %.0f s", step, run.iteration, recent, run.seconds)


def _progress(run: _Run, settings: StarterSettings) -> float:
    """Return the finished share of the training, by iterations or by time, whichever is larger."""
    done = run.iteration / settings.iterations
    return done if settings.minutes is None else max(done, run.seconds / 60 / settings.minutes)


def _save(run: _Run, folder: Path, latest: Path) -> None:
    write_checkpoint(latest, run.state())
    export_model(folder, run.step, run.mean, run.settings.features)
    done: dict[str, Any] = {
        "iterations_done": run.iteration,
        "seconds": round(run.seconds),
        "begun_from_sha256": run.origin,
    }
    done |= {"discs_by_sha256": run.finders} if run.finders else {}
    done |= {"real_cases_sha256": run.cases} if run.cases else {}
    write_json(folder / "training.json", {"step": run.step, **run.settings.record(run.step), **done})
