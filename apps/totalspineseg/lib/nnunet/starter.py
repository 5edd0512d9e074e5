"""Training of the starter weights on synthetic spines, into nnU-Net's own folder format.

Importable with PyTorch, nnU-Net, numpy and scipy alone.
"""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lib.nnunet.starter_batches import POOL_SIZE, Sample, samples
from lib.nnunet.starter_model import build_network, export_model, region_loss, warm_start, write_checkpoint
from lib.nnunet.starter_plans import FEATURES, PATCH, STARTER_FOLDERS, STRIDES, regions_of

logger = logging.getLogger(__name__)

LEARNING_RATE = 1.5e-3
"""AdamW at the start; falls to nearly zero by nnU-Net's polynomial."""
WEIGHT_DECAY = 1e-4
POLY_POWER = 0.9
WARM_UP = 50
EMA_DECAY = 0.998
"""Running mean of the weights: some 500 iterations, less at the beginning."""
MAX_GRADIENT_NORM = 12.0
EARLY_PHASE = 0.3
"""Share of the training on smaller patches: twice the iterations while shapes are learned."""
EARLY_PATCH_SHARE = 3
"""Quarters of the patch's sides in the early phase, rounded up to what the strides divide."""
SAVE_EVERY_S = 120.0
LOG_EVERY = 25


class _Run:
    """One training run: network, running mean, optimizer and where it stands."""

    def __init__(self, step: int, features: tuple[int, ...], device: torch.device) -> None:
        self.step, self.features, self.device = step, features, device
        self.network = build_network(step, features, deep_supervision=True).to(device)
        self.mean = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.optimizer = torch.optim.AdamW(self.network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.iteration, self.seconds, self.losses = 0, 0.0, list[float]()

    def train_on(self, batch: list[Sample], progress: float) -> float:
        rate = LEARNING_RATE * max(1 - progress, 1e-3) ** POLY_POWER * min(1.0, (self.iteration + 1) / WARM_UP)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        inputs = torch.stack([s.channels for s in batch]).to(self.device)
        target = torch.stack([s.regions for s in batch]).to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        loss = region_loss(self.network(inputs), target)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.iteration += 1
        decay = min(EMA_DECAY, (1 + self.iteration) / (10 + self.iteration))
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
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.mean = {k: v.to(self.device) for k, v in state["mean"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration, self.seconds, self.losses = state["iteration"], state["seconds"], state["losses"]


def _early_patch(patch: tuple[int, ...]) -> tuple[int, ...]:
    factors = np.prod(STRIDES, axis=0)
    return tuple(int(-(-EARLY_PATCH_SHARE * n // (4 * f)) * f) for n, f in zip(patch, factors, strict=True))


def _batches(step: int, seed: int, size: int, patch: tuple[int, ...], pool: int) -> Iterator[list[Sample]]:
    stream = samples(step, seed, patch, pool_size=pool)
    while True:
        yield [next(stream) for _ in range(size)]


def train_starter(
    step: int,
    out_dir: Path,
    *,
    iterations: int = 3000,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
    resume: bool = True,
    minutes: float | None = None,
    batch_size: int = 1,
    features: tuple[int, ...] = FEATURES,
    patch: tuple[int, ...] = PATCH,
    pool_size: int = POOL_SIZE,
    start_from: Path | None = None,
) -> Path:
    """Train one step's starter model; may be stopped at any moment and called again.

    Args:
        step: 1 or 2.
        out_dir: The starter folder; the model goes to its usual place below.
        iterations: Where the learning rate reaches zero.
        seed: Of the weights and of the stream of spines.
        device: "cpu", "cuda" ..
        threads: CPU threads.
        resume: Go on from the state a former call left.
        minutes: End after this much training time in all, the learning rate falling with it; None: no limit.
        batch_size: Patches per iteration.
        features: Features by stage.
        patch: Patch on the network's grid, (Z, Y, X).
        pool_size: Spines at hand at a time.
        start_from: Step-1 model folder whose weights step 2 begins with.

    Returns:
        The model folder.

    Raises:
        ValueError: The step is neither 1 nor 2.
    """
    regions_of(step)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    folder = Path(out_dir) / STARTER_FOLDERS[step]
    latest = folder / "fold_0" / "checkpoint_latest.pth"
    run = _Run(step, features, torch.device(device))
    if resume and latest.is_file():
        run.restore(torch.load(latest, map_location=device, weights_only=True))
    elif start_from is not None:
        known = torch.load(start_from / "fold_0" / "checkpoint_final.pth", map_location=device, weights_only=True)
        run.network.load_state_dict(warm_start(run.network.state_dict(), known["network_weights"]))
        run.mean = {k: v.detach().clone() for k, v in run.network.state_dict().items()}
    settings = {
        "step": step,
        "iterations": iterations,
        "seed": seed,
        "minutes": minutes,
        "batch_size": batch_size,
        "features": list(features),
        "patch": list(patch),
        "learning_rate": LEARNING_RATE,
        "threads": threads,
        "device": device,
        "started_from_step1": start_from is not None,
    }
    start = seed + 7919 * run.iteration  # another stretch of the stream after every resumption
    early = _batches(step, start, batch_size, _early_patch(patch), pool_size)
    stream = _batches(step, start + 1, batch_size, patch, pool_size)
    saved = began = time.monotonic()
    before = run.seconds
    while True:
        run.seconds = before + time.monotonic() - began
        progress = run.iteration / iterations
        if minutes is not None:
            progress = max(progress, run.seconds / 60 / minutes)
        due = time.monotonic() - saved > SAVE_EVERY_S
        if due or progress >= 1:
            _save(run, folder, latest, settings)
            saved = time.monotonic()
        if progress >= 1:
            return folder
        run.train_on(next(early if progress < EARLY_PHASE else stream), progress)
        if run.iteration % LOG_EVERY == 0:
            recent = float(np.mean(run.losses[-100:]))
            logger.info("step %d iteration %d loss %.4f %.0f s", step, run.iteration, recent, run.seconds)


def _save(run: _Run, folder: Path, latest: Path, settings: dict[str, Any]) -> None:
    write_checkpoint(latest, run.state())
    export_model(folder, run.step, run.mean, run.features)
    done = {"iterations_done": run.iteration, "seconds": round(run.seconds)}
    (folder / "training.json").write_text(json.dumps(settings | done, indent=2) + "\n")
