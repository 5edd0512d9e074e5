"""Writing a trained network as a model folder of nnU-Net's shape, plans and dataset those of its parent."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from lib.nnunet.checkpoint import float32_weights, load_checkpoint
from lib.nnunet.model_folder import ModelFolder
from lib.nnunet.raw_dataset import dataset_name
from lib.nnunet.trust_file import TRUST_FILE, write_trust
from lib.volume_io import write_atomic

KEPT: Final = ("init_args", "trainer_name", "inference_allowed_mirroring_axes", "current_epoch", "logging", "_best_ema")
"""Entries of a checkpoint that nnU-Net reads for inference or that tell its history; the optimizer's state is not."""


def write_candidate(parent: ModelFolder, weights: Mapping[str, torch.Tensor], target: Path) -> Path:
    """Write a model folder with new weights.

    Args:
        parent: The model the weights were trained from. Not modified.
        weights: Under the parent's names.
        target: Folder to write below; made when missing.

    Returns:
        The model folder with the parent's trust, named as the parent's in a folder of its dataset, as nnU-Net's own
        tools expect it.

    Raises:
        StorageError: It cannot be written.
        WeightsError: The parent's checkpoint cannot be read.
    """
    # A folder for each step: two models given by plain folders may bear the same name.
    folder = target / dataset_name(parent.step) / parent.path.name
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    for name in ("plans.json", "dataset.json"):
        source = parent.path / name
        write_atomic(folder / name, lambda temporary, source=source: shutil.copyfile(source, temporary))  # type: ignore[misc]
    if (parent.path / TRUST_FILE).is_file():
        write_trust(folder, parent.trust)
    checkpoint = load_checkpoint(parent.checkpoint)
    content = {key: checkpoint[key] for key in KEPT if key in checkpoint} | {"network_weights": dict(weights)}
    write_atomic(folder / "fold_0" / "checkpoint_final.pth", lambda temporary: torch.save(content, temporary))
    return folder


def mixed_weights(parent: ModelFolder, trained: ModelFolder, share: float) -> dict[str, torch.Tensor]:
    """Weights between those of two models of one shape.

    Args:
        parent: The model the training started from. Not modified.
        trained: What it led to. Not modified.
        share: Of the trained weights, 0 to 1.

    Returns:
        float32 tensors under the parent's names.

    Raises:
        WeightsError: A checkpoint cannot be read.
    """
    old, new = (float32_weights(load_checkpoint(model.checkpoint)) for model in (parent, trained))
    return {name: torch.lerp(value, new[name], share) for name, value in old.items()}
