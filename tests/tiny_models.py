"""Write nnU-Net model folders of the official shape with tiny networks and random weights, for tests."""

import io
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from totalspineseg_server.anatomy import STEP1_REGIONS, STEP2_REGIONS

DATASETS = {1: "Dataset101_TotalSpineSeg_step1", 2: "Dataset102_TotalSpineSeg_step2"}
TRAINER = "nnUNetTrainerDAExtGPU"
"""A trainer class that nnU-Net itself does not have, like that of the official checkpoints."""
CONFIGURATION = "3d_fullres"
ARCHITECTURES = {
    "plain": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "resenc": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
}


def dataset_json(step: int) -> dict[str, Any]:
    """Return the dataset.json of a step: region labels in channel order."""
    regions: Mapping[str, tuple[int, ...]] = STEP1_REGIONS if step == 1 else STEP2_REGIONS
    labels: dict[str, Any] = {"background": 0}
    labels |= {name: classes[0] if len(classes) == 1 else list(classes) for name, classes in regions.items()}
    return {
        "channel_names": {"0": "MRI"} if step == 1 else {"0": "MRI", "1": "noNorm"},
        "labels": labels,
        "regions_class_order": list(range(1, len(regions) + 1)),
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }


def plans_json(
    step: int,
    *,
    features: Sequence[int] = (4, 8),
    patch: Sequence[int] = (16, 16, 16),
    spacing: Sequence[float] = (1, 1, 1),
    arch: str = "resenc",
) -> dict[str, Any]:
    """Return the plans.json of a step, with the keys of nnU-Net's planner."""
    stages = len(features)
    blocks = "n_blocks_per_stage" if arch == "resenc" else "n_conv_per_stage"
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    channels = 1 if step == 1 else 2
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "median_image_size_in_voxels": [400.0, 200.0, 100.0],
        "spacing": list(spacing),
        "normalization_schemes": ["ZScoreNormalization", "NoNormalization"][:channels],
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling,
        "architecture": {
            "network_class_name": ARCHITECTURES[arch],
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": list(features),
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3]] * stages,
                "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
                blocks: [1] * stages,
                "n_conv_per_stage_decoder": [1] * (stages - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    return {
        "dataset_name": DATASETS[step],
        "plans_name": "nnUNetResEncUNetLPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [400, 200, 100],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": "nnUNetPlannerResEncL",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(i): {"mean": 100.0, "std": 50.0} for i in range(channels)},
    }


def random_network(step: int, plans: dict[str, Any], seed: int) -> torch.nn.Module:
    """Return the network of the plans with seeded random weights whose logits are balanced around zero."""
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            1 if step == 1 else 2,
            len(STEP1_REGIONS if step == 1 else STEP2_REGIONS),
            deep_supervision=True,
        )


def checkpoint_dict(
    step: int, plans: dict[str, Any], seed: int, dtype: torch.dtype = torch.float32, trainer: str = TRAINER
) -> dict[str, Any]:
    """Return a checkpoint like that of nnU-Net's trainer, with numpy scalars in its log."""
    network = random_network(step, plans, seed)
    epochs = [np.float64(0.5), np.float32(0.25)]
    return {
        "network_weights": network.to(dtype).state_dict(),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": epochs, "dice_per_class_or_region": [epochs], "train_losses": [np.float32(-0.1)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1,
        "init_args": {
            "plans": plans,
            "configuration": CONFIGURATION,
            "fold": 0,
            "dataset_json": dataset_json(step),
            "device": torch.device("cuda"),
        },
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


@lru_cache(maxsize=64)
def _checkpoint_file(step: int, plans: str, seed: int, dtype: torch.dtype, trainer: str) -> bytes:
    """Return the content of a checkpoint; tests ask for the same ones again and again."""
    file = io.BytesIO()
    torch.save(checkpoint_dict(step, json.loads(plans), seed, dtype, trainer), file)
    return file.getvalue()


def write_model_folder(
    path: Path,
    step: int,
    *,
    features: Sequence[int] = (4, 8),
    patch: Sequence[int] = (16, 16, 16),
    spacing: Sequence[float] = (1, 1, 1),
    seed: int = 0,
    arch: str = "resenc",
    nested: bool = True,
    dtype: torch.dtype = torch.float32,
    checkpoint: str = "checkpoint_final.pth",
    trainer: str = TRAINER,
) -> Path:
    """Write a model folder of one step.

    Args:
        path: Folder to write under (created).
        step: 1 or 2.
        features: Feature maps per stage.
        patch: Patch, (z, y, x) voxels of the plans' spacing.
        spacing: Plans' spacing, (z, y, x) mm.
        seed: Seed of the random weights.
        arch: "resenc" or "plain".
        nested: Write the official ``Dataset10x_.../Trainer__Plans__3d_fullres/`` folders below ``path``.
        dtype: Type of the stored tensors.
        checkpoint: File name in ``fold_0``.
        trainer: Trainer class the checkpoint names.

    Returns:
        The folder that holds plans.json.
    """
    plans = plans_json(step, features=features, patch=patch, spacing=spacing, arch=arch)
    folder = path / DATASETS[step] / f"{trainer}__{plans['plans_name']}__{CONFIGURATION}" if nested else path
    (folder / "fold_0").mkdir(parents=True)
    text = json.dumps(plans)
    (folder / "plans.json").write_text(text, encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(dataset_json(step)), encoding="utf-8")
    (folder / "fold_0" / checkpoint).write_bytes(_checkpoint_file(step, text, seed, dtype, trainer))
    return folder


def write_models(path: Path, **options: Any) -> Path:
    """Write both steps' folders below ``path`` (same options as ``write_model_folder``); return ``path``."""
    for step in DATASETS:
        write_model_folder(path, step, **options)
    return path
