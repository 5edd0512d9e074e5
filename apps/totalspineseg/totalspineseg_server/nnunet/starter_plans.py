"""Make nnU-Net's plans and dataset description for the starter models, as its own planner does, and their settings."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from totalspineseg_server import anatomy
from totalspineseg_server.nnunet import nnunet_messages

STARTER_FOLDERS: Final[Mapping[int, str]] = {
    1: "Dataset101_TotalSpineSeg_step1/nnUNetTrainer__nnUNetPlans__3d_fullres",
    2: "Dataset102_TotalSpineSeg_step2/nnUNetTrainer__nnUNetPlans__3d_fullres",
}
"""Folder of each step's model below the starter folder."""
CHECKPOINT: Final = "fold_0/checkpoint_final.pth"
"""File of a model's weights below its folder; it is written after the plans, so a model that has it is complete."""


@dataclass(frozen=True)
class Grid:
    """The grid of a network's input, axes (Z, Y, X).

    Attributes:
        spacing_mm: Voxel size.
        patch: Size of a tile, voxels.
        oversampling: Voxels of training spines for each network voxel. A network voxel at the cord's edge contains only
            a part of it, as its target says. It is finer along every axis, because a scan's voxels never coincide with
            the network's: without it along z, thin discs were unrealistically sharp and came out a tenth too small.
    """

    spacing_mm: tuple[float, float, float]
    patch: tuple[int, int, int]
    oversampling: tuple[int, int, int]

    @property
    def fine_mm(self) -> tuple[float, float, float]:
        """Voxel size of training spines, axes (X, Y, Z)."""
        z, y, x = (mm / n for mm, n in zip(self.spacing_mm, self.oversampling, strict=True))
        return x, y, z


GRIDS: Final[Mapping[int, Grid]] = {
    1: Grid((2.0, 2.25, 3.5), (128, 56, 24), (2, 2, 2)),
    2: Grid((1.5, 1.5, 2.5), (112, 64, 32), (2, 2, 2)),
}
"""Grid of each step, coarse enough for a CPU. Step 1 finds the levels: its tile of 256 x 126 x 84 mm shows about ten at
once. Step 2 gets them and finds borders: its tile is 168 x 96 x 80 mm, its voxels are a third as large."""
STRIDES: Final = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 1, 1))
"""Strides between the resolution stages; the sides of a patch are multiples of their product."""
FEATURES: Final = (16, 32, 64, 128, 160)
"""Features by resolution stage: 3.6 million weights, 7 MB in half precision."""
_USUAL_MM: Final = (560, 200, 105)
"""Extent of a usual scan, (Z, Y, X)."""
_CONFIGURATION = "3d_fullres"


def regions_of(step: int) -> Mapping[str, tuple[int, ...]]:
    """Return region name -> classes of a step, in the order of the network's channels.

    Raises:
        ValueError: The step is neither 1 nor 2.
    """
    if step not in STARTER_FOLDERS:
        raise ValueError(f"expected step 1 or 2, got {step!r}")
    return anatomy.STEP1_REGIONS if step == 1 else anatomy.STEP2_REGIONS


def dataset_json(step: int) -> dict[str, Any]:
    """Return nnU-Net's ``dataset.json`` for a step."""
    channels = {"0": "MRI"} | ({"1": "noNorm"} if step == 2 else {})
    regions = regions_of(step)
    labels: dict[str, Any] = {"background": 0}
    labels |= {name: list(classes) if len(classes) > 1 else classes[0] for name, classes in regions.items()}
    return {
        "channel_names": channels,
        "labels": labels,
        "regions_class_order": list(range(1, len(regions) + 1)),
        "numTraining": 0,
        "file_ending": ".nii.gz",
        "description": nnunet_messages.STARTER_NOTE,
    }


def architecture(features: tuple[int, ...] = FEATURES) -> dict[str, Any]:
    """Return nnU-Net's description of a plain convolutional U-Net with these features."""
    stages = len(features)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": [list(stride) for stride in STRIDES[:stages]],
            "n_conv_per_stage": [2] * stages,
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
    }


def plans_json(step: int, features: tuple[int, ...] = FEATURES) -> dict[str, Any]:
    """Return nnU-Net's ``plans.json`` for a step."""
    inputs, grid = len(dataset_json(step)["channel_names"]), GRIDS[step]
    resample = {"is_seg": False, "force_separate_z": False, "memefficient_seg_resampling": False}
    configuration = {
        "data_identifier": f"nnUNetPlans_{_CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(grid.patch),
        "median_image_size_in_voxels": [n / mm for n, mm in zip(_USUAL_MM, grid.spacing_mm, strict=True)],
        "spacing": list(grid.spacing_mm),
        "normalization_schemes": ["ZScoreNormalization", "NoNormalization"][:inputs],
        "use_mask_for_norm": [False] * inputs,
        "resampling_fn_data": "resample_torch_fornnunet",
        "resampling_fn_seg": "resample_torch_fornnunet",
        "resampling_fn_data_kwargs": resample,
        "resampling_fn_seg_kwargs": resample | {"is_seg": True},
        "resampling_fn_probabilities": "resample_torch_fornnunet",
        "resampling_fn_probabilities_kwargs": resample,
        "architecture": architecture(features),
        "batch_dice": True,
    }
    return {
        "dataset_name": STARTER_FOLDERS[step].split("/", maxsplit=1)[0],
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": list(_USUAL_MM),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {_CONFIGURATION: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(k): {
                "max": 1.0,
                "mean": 0.0,
                "median": 0.0,
                "min": 0.0,
                "percentile_00_5": 0.0,
                "percentile_99_5": 1.0,
                "std": 1.0,
            }
            for k in range(inputs)
        },
    }


@dataclass(frozen=True)
class StarterSettings:
    """Settings of one training run; the defaults suit one CPU core.

    Attributes:
        iterations: Iterations until the learning rate reaches zero.
        minutes: Total training time until it reaches zero at the latest; None for no limit.
        piece_minutes: Time until this call ends and leaves its state to the next; None for no limit.
        seed: Seed of the weights and of the stream of spines.
        device: "cpu", "cuda" ..
        threads: CPU threads of the network.
        workers: Processes that make spines during the training; with 0 the training makes them itself. With a GPU, use
            one for each core.
        batch_size: Patches in an iteration.
        learning_rate: Initial rate of AdamW; it falls to nearly zero by nnU-Net's polynomial.
        warm_up: Iterations over which the rate rises.
        ema_decay: Decay of the running mean of the weights, which is exported.
        early_phase: Share of the training on smaller patches: twice as many iterations while shapes are learned.
        uses_per_spine: Patches from one synthetic spine; making a spine takes as long as about three patches.
        pool_size: Spines in memory at a time, so that neighbors in the stream differ; each takes about 20 MB.
        features: Features by stage.
        patch: Patch on the network's grid, (Z, Y, X); None for the step's default.
        real_share: Share of the patches from scans of people, if there are any.
        outlines_only: Whether only the layers in ``OUTLINE_PARTS`` change.
    """

    iterations: int = 3000
    minutes: float | None = None
    piece_minutes: float | None = None
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    workers: int = 0
    batch_size: int = 1
    learning_rate: float = 1.5e-3
    warm_up: int = 50
    ema_decay: float = 0.998
    early_phase: float = 0.3
    uses_per_spine: int = 20
    pool_size: int = 8
    features: tuple[int, ...] = FEATURES
    patch: tuple[int, ...] | None = None
    real_share: float = 0.35
    outlines_only: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A count or rate is out of its range.
        """
        for name in ("iterations", "threads", "batch_size", "uses_per_spine", "pool_size"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"expected {name} of 1 or more, got {getattr(self, name)!r}. Leave it out for the default."
                )
        for name in ("minutes", "piece_minutes"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(
                    f"expected a positive time for {name}, got {getattr(self, name)!r}. Leave it out for no limit."
                )
        if self.workers < 0:
            raise ValueError(f"expected 0 or more workers, got {self.workers!r}")
        if not 0 <= self.real_share <= 1:
            raise ValueError(f"expected real_share from 0 to 1, such as 0.35, got {self.real_share!r}")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"expected learning_rate between 0 and 1, such as 0.0015, got {self.learning_rate!r}")

    def patch_of(self, step: int) -> tuple[int, ...]:
        """Return the size of a step's training patches."""
        return self.patch or GRIDS[step].patch

    def record(self, step: int) -> dict[str, Any]:
        """Return the settings of a step's training for JSON."""
        used = asdict(self) | {"patch": self.patch_of(step)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in used.items()}
