"""Write a trained network as a model folder like nnU-Net's, with the plans and dataset of its parent."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from totalspineseg_server.files import copy_file, write_file
from totalspineseg_server.nnunet.checkpoint import float32_weights, load_checkpoint
from totalspineseg_server.nnunet.model_folder import CONFIGURATION, ModelFolder
from totalspineseg_server.nnunet.raw_dataset import dataset_name
from totalspineseg_server.nnunet.trust_file import write_trust
from totalspineseg_server.trust import Trust

CHECKPOINT_ENTRIES: Final = ("init_args", "inference_allowed_mirroring_axes", "current_epoch", "logging", "_best_ema")
"""Entries of a checkpoint that are kept: those for inference and the history, without the optimizer's state."""
STOCK_TRAINER: Final = "nnUNetTrainer"
"""Name of the trainer in written checkpoints: nnU-Net looks for this class before it predicts, and has only its own."""


def write_candidate(parent: ModelFolder, weights: Mapping[str, torch.Tensor], target: Path, trust: Trust) -> Path:
    """Write a model folder with new weights.

    Args:
        parent: The model from which the training started. Not modified.
        weights: New weights, under the parent's names.
        target: Folder to write below; it is made if it is missing.
        trust: How far the new weights are trusted.

    Returns:
        The model folder in a folder of its dataset, named as nnU-Net's own tools expect it.

    Raises:
        StorageError: It cannot be written.
        WeightsError: The parent's checkpoint cannot be read.
    """
    # Use a folder for each step, because two models in plain folders may have the same name.
    folder = target / dataset_name(parent.step) / stock_name(parent)
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    for name in ("plans.json", "dataset.json"):
        copy_file(parent.path / name, folder / name)
    write_trust(folder, trust)
    content = stock_checkpoint(load_checkpoint(parent.checkpoint), weights)
    write_file(folder / "fold_0" / "checkpoint_final.pth", lambda temporary: torch.save(content, temporary))
    return folder


def stock_checkpoint(checkpoint: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return a checkpoint that nnU-Net loads without the class that trained it.

    Args:
        checkpoint: From ``load_checkpoint``. Not modified.
        weights: The network's tensors, under the names of the checkpoint's.
    """
    entries = {key: checkpoint[key] for key in CHECKPOINT_ENTRIES if key in checkpoint}
    return {**entries, "trainer_name": STOCK_TRAINER, "network_weights": _stored_once(weights, checkpoint)}


def _stored_once(weights: Mapping[str, torch.Tensor], checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Let all names of a tensor share it again; otherwise the file is almost four times as large."""
    known = checkpoint["network_weights"]
    first: dict[tuple[int, int, torch.Size], torch.Tensor] = {}
    shared = {}
    for name, value in weights.items():
        stored = known[name]
        place = stored.untyped_storage().data_ptr(), stored.storage_offset(), stored.shape
        same = first.setdefault(place, value)
        shared[name] = same if torch.equal(same, value) else value
    return shared


def stock_name(model: ModelFolder) -> str:
    """Return a model's folder name (trainer, plans, configuration) with nnU-Net's own trainer in it."""
    parts = model.path.name.split("__")
    plans, configuration = parts[1:] if len(parts) == 3 else ("nnUNetPlans", CONFIGURATION)
    return f"{STOCK_TRAINER}__{plans}__{configuration}"


def mixed_weights(parent: ModelFolder, trained: ModelFolder, share: float) -> dict[str, torch.Tensor]:
    """Return a mean of the weights of two models with the same architecture.

    Args:
        parent: The model from which the training started. Not modified.
        trained: The trained model. Not modified.
        share: Share of the trained weights, 0 to 1.

    Returns:
        float32 tensors under the parent's names.

    Raises:
        WeightsError: A checkpoint cannot be read.
    """
    old, new = (float32_weights(load_checkpoint(model.checkpoint)) for model in (parent, trained))
    return {name: torch.lerp(value, new[name], share) for name, value in old.items()}
