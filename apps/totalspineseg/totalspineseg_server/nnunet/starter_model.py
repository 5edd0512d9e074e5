"""Build the starter networks as nnU-Net builds them, and write the folder that nnU-Net loads."""

from pathlib import Path
from typing import Any, Final

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from totalspineseg_server.files import sha256_of, write_file, write_json, write_text
from totalspineseg_server.nnunet.discovery import TRUST_FILE
from totalspineseg_server.nnunet.starter_plans import CHECKPOINT, FEATURES, dataset_json, plans_json, regions_of

OUTLINE_PARTS: Final = (
    *("encoder.stages.0.", "encoder.stages.1.", "decoder.transpconvs.3."),
    *("decoder.stages.2.", "decoder.stages.3.", "decoder.seg_layers."),
)
"""Parts of the names of weights at the two finest resolutions, which draw borders; the others tell levels apart."""
HEAD_BIAS = -2.5
"""Initial logit of the heads: most voxels belong to no region."""


def build_network(step: int, features: tuple[int, ...] = FEATURES, *, deep_supervision: bool) -> nn.Module:
    """Return the network that nnU-Net builds from the starter's plans."""
    plan = plans_json(step, features)["configurations"]["3d_fullres"]["architecture"]
    network: nn.Module = get_network_from_plans(
        plan["network_class_name"],
        plan["arch_kwargs"],
        plan["_kw_requires_import"],
        len(dataset_json(step)["channel_names"]),
        len(regions_of(step)),
        deep_supervision=deep_supervision,
    )
    for name, value in network.named_parameters():
        if "seg_layers" in name and name.endswith("bias"):
            nn.init.constant_(value, HEAD_BIAS)
    return network


def draws_outlines(name: str) -> bool:
    """Return whether the weights of this name are among ``OUTLINE_PARTS``."""
    return any(part in name for part in OUTLINE_PARTS)


def warm_start(target: dict[str, torch.Tensor], source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return initial weights of a step-2 network from step 1: those that fit are used, a wider input starts at zero.

    Args:
        target: Initial weights of the step-2 network. Not modified.
        source: Trained weights of the step-1 network. Not modified.

    Returns:
        New weights; segmentation heads keep their initial values, because their regions differ.
    """
    out = {}
    for name, fresh in target.items():
        known = source.get(name)
        if known is not None and known.shape == fresh.shape:
            out[name] = known.clone().to(fresh.dtype)
        elif known is not None and known.ndim == 5 and known.shape[0] == fresh.shape[0]:
            out[name] = fresh.clone() * 0.5  # the marked discs must have an effect from the start
            out[name][:, : known.shape[1]] = known.to(fresh.dtype)
        else:
            out[name] = fresh.clone()
    return out


def write_checkpoint(path: Path, data: dict[str, Any]) -> None:
    """Write a checkpoint so that no reader sees a partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda temporary: torch.save(data, temporary))


def _half_precision(step: int, weights: dict[str, torch.Tensor], features: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Return the weights as float16, with a tensor of several names stored once (a third of the file)."""
    storage = {k: v.data_ptr() for k, v in build_network(step, features, deep_supervision=True).state_dict().items()}
    halves = {storage[name]: value.detach().cpu().half() for name, value in weights.items()}
    return {name: halves[storage[name]] for name in weights}


def export_model(folder: Path, step: int, weights: dict[str, torch.Tensor], features: tuple[int, ...]) -> None:
    """Write the model folder that nnU-Net loads, with weights in half precision and a file of hashes.

    The measured trust of earlier weights in the folder is deleted, because it does not apply to the new ones.

    Args:
        folder: ``Dataset10x../nnUNetTrainer__nnUNetPlans__3d_fullres``; made if missing.
        step: 1 or 2.
        weights: State of the network.
        features: Features of the network by stage.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plans, dataset = plans_json(step, features), dataset_json(step)
    write_json(folder / "plans.json", plans)
    write_json(folder / "dataset.json", dataset)
    checkpoint = {
        "network_weights": _half_precision(step, weights, features),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"plans": plans, "configuration": "3d_fullres", "fold": 0, "dataset_json": dataset},
        "inference_allowed_mirroring_axes": None,
        "current_epoch": 0,
    }
    (folder / TRUST_FILE).unlink(missing_ok=True)
    write_checkpoint(folder / CHECKPOINT, checkpoint)
    names = ("dataset.json", CHECKPOINT, "plans.json")
    lines = [f"{sha256_of(folder / n)}  {n}\n" for n in names]
    write_text(folder / "SHA256SUMS", "".join(lines))
