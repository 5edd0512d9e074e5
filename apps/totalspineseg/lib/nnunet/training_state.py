"""The state of a training on disk: written whole or not at all, read without running anything."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from lib.errors import WeightsError
from lib.nnunet.checkpoint import load_checkpoint
from lib.volume_io import write_atomic

STATE_FILE: Final = "state.pth"
FORMAT: Final = 1
"""Changes when older states can no longer be continued."""


@dataclass(frozen=True)
class TrainingState:
    """Everything that is needed to go on as if nothing had happened.

    Attributes:
        iteration: Iterations done.
        weights: Of the network.
        optimizer: State of the optimizer.
        batch_size: Patches in a pass; smaller than asked for after a lack of memory.
        best: Best mean pseudo Dice so far; None before the first validation.
        extra: Small plain values.
    """

    iteration: int
    weights: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    batch_size: int
    best: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def run_key(content: Mapping[str, Any]) -> str:
    """Identifies what a training is about (parent, settings, cases): only the same is continued."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def save_state(folder: Path, key: str, state: TrainingState) -> None:
    """Replace the stored state in one step.

    Raises:
        StorageError: The disk is full or cannot be written; the state before is still there.
    """
    content = {
        "format": FORMAT,
        "key": key,
        "iteration": state.iteration,
        "network_weights": dict(state.weights),
        "optimizer_state": dict(state.optimizer),
        "batch_size": state.batch_size,
        "best": state.best,
        "extra": dict(state.extra),
    }
    write_atomic(folder / STATE_FILE, lambda temporary: torch.save(content, temporary))


def load_state(folder: Path, key: str) -> TrainingState | None:
    """The stored state of this very training.

    Returns:
        None when there is none, when it belongs to another training, or when it cannot be read: then the training
        starts from its beginning, which is slower but right.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    try:
        content = load_checkpoint(path)
        if content["format"] != FORMAT or content["key"] != key:
            return None
        return TrainingState(
            iteration=int(content["iteration"]),
            weights=content["network_weights"],
            optimizer=content["optimizer_state"],
            batch_size=int(content["batch_size"]),
            best=content["best"],
            extra=content["extra"],
        )
    except (WeightsError, KeyError, TypeError, ValueError):
        return None
