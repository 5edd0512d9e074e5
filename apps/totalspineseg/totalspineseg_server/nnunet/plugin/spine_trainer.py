"""Adapt nnU-Net's own trainer to spines and long runs, for training from scratch.

It differs from the stock class in this: images are mirrored left to right only (upside down, landmarks would differ,
and odd vertebrae would lie above their disc) and varied as in MRI; the odd-disc channel is deformed with the image but
keeps its values; checkpoints are written whole and often, and read without running any code; and the log names the
regions.
"""

import os
import warnings
from pathlib import Path
from typing import Any, Final

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from totalspineseg_server.files import write_file
from totalspineseg_server.nnunet.augmentation import FirstChannelTransform, scanner_variations
from totalspineseg_server.nnunet.checkpoint import load_checkpoint
from totalspineseg_server.nnunet.finetune_settings import Strength
from totalspineseg_server.nnunet.targets import REGIONS, Step
from totalspineseg_server.nnunet.training_log import TrainingLog, dice_text

EPOCHS_VARIABLE: Final = "TOTALSPINESEG_EPOCHS"
ITERATIONS_VARIABLE: Final = "TOTALSPINESEG_ITERATIONS"
"""Environment variable for a setting, because nnU-Net's trainers accept none."""
SAVE_EVERY: Final = 5
"""Number of epochs between two stored states; with nnU-Net's 50, an interruption would cost hours."""
VALIDATION_SHARE: Final = 5
"""Number of training iterations for each validation iteration: nnU-Net has 250 to 50."""
REMAPPED: Final = ("disc", "vertebrae", "sacrum", "canal", "cord")
"""Regions that get their own gray value; the cord follows the canal that contains it."""
SPATIAL: Final = 1
"""Number of nnU-Net's transforms that deform all channels; those that follow change gray values."""


class SpineTrainer(nnUNetTrainer):  # type: ignore[misc]
    """nnU-Net's trainer for training from scratch; its arguments are nnU-Net's."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        epochs, iterations = self.epochs_and_iterations()
        self.num_epochs, self.num_iterations_per_epoch = epochs, iterations
        self.num_val_iterations_per_epoch = max(1, iterations // VALIDATION_SHARE)
        self.save_every = SAVE_EVERY
        # The curves of ``TrainingLog`` replace nnU-Net's picture of 16 million pixels, which is made after every epoch.
        self.logger.plot_progress_png = lambda _: None

    def epochs_and_iterations(self) -> tuple[int, int]:
        """Return the number of epochs, and of iterations in each."""
        return int(os.environ[EPOCHS_VARIABLE]), int(os.environ[ITERATIONS_VARIABLE])

    @property
    def iterations_done(self) -> int:
        """Iterations of the finished epochs."""
        return int(self.current_epoch * self.num_iterations_per_epoch)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        """Return nnU-Net's choice, but with mirroring left to right only, and none at inference."""
        rotation, flat, patch, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        # Files are read as (Z, Y, X); the plans may reorder the axes.
        return rotation, flat, patch, (self.plans_manager.transpose_forward.index(2),)

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any) -> BasicTransform:
        """Return nnU-Net's chain with gray values changed only in the image, and with variations of scanners."""
        chain = nnUNetTrainer.get_training_transforms(*args, **kwargs)
        chain.transforms = with_scanners(chain.transforms, len(kwargs["regions"]))
        return chain

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Let nnU-Net compute pseudo Dice, without warnings for regions that are in neither truth nor prediction."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            super().on_validation_epoch_end(val_outputs)

    def on_epoch_end(self) -> None:
        """Finish nnU-Net's epoch, and write a line and the curves to the log."""
        super().on_epoch_end()
        if self.local_rank != 0:
            return
        values = self.logger.get_value("dice_per_class_or_region", step=-1)
        dice = {name: float(value) for name, value in zip(REGIONS[_step(len(values))], values, strict=True)}
        loss = float(self.logger.get_value("train_losses", step=-1))
        log = TrainingLog(Path(self.output_folder))
        log.say(
            f"epoch {self.current_epoch} of {self.num_epochs}, loss {loss:.3f}, pseudo Dice: {dice_text(dice)}",
            epoch=self.current_epoch,
            iteration=self.iterations_done,
            loss=loss,
            dice=dice,
        )
        log.draw()

    def save_checkpoint(self, filename: str) -> None:
        """Replace a checkpoint in one step; nnU-Net would write into the old one."""
        if self.local_rank == 0 and not self.disable_checkpointing:
            save = super().save_checkpoint
            write_file(Path(filename), lambda temporary: save(str(temporary)))

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Continue from a checkpoint that is read as plain data; nnU-Net would run code in the file."""
        if not self.was_initialized:
            self.initialize()
        content = load_checkpoint(Path(filename_or_checkpoint))
        network = self.network.module if self.is_ddp else self.network
        getattr(network, "_orig_mod", network).load_state_dict(content["network_weights"])
        self.optimizer.load_state_dict(content["optimizer_state"])
        if self.grad_scaler is not None and content["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(content["grad_scaler_state"])
        self.my_init_kwargs = content["init_args"]
        self.current_epoch = content["current_epoch"]
        self.logger.load_checkpoint(content["logging"])
        self._best_ema = content["_best_ema"]
        self.on_state_loaded()
        if self.local_rank == 0:
            text = f"resumed at iteration {self.iterations_done}, after epoch {self.current_epoch} of {self.num_epochs}"
            TrainingLog(Path(self.output_folder)).say(text, epoch=self.current_epoch)

    def on_state_loaded(self) -> None:
        """Let a subclass restore the values that it has stored beside nnU-Net's state."""


def with_scanners(transforms: list[BasicTransform], regions: int) -> list[BasicTransform]:
    """Return nnU-Net's chain adapted to spines.

    Args:
        transforms: The stock chain: deforming, then gray values, then preparing the target. Not modified.
        regions: Number of regions in the target, which identifies the step.
    """
    names = REGIONS[_step(regions)]
    groups = tuple(names[name] for name in REMAPPED if name in names)
    gray = [FirstChannelTransform(t) if _changes_gray_values(t) else t for t in transforms[SPATIAL:]]
    return [*transforms[:SPATIAL], *map(FirstChannelTransform, scanner_variations(Strength(), groups)), *gray]


def _changes_gray_values(transform: BasicTransform) -> bool:
    return isinstance(transform, RandomTransform) and isinstance(transform.transform, ImageOnlyTransform)


def _step(regions: int) -> Step:
    return 1 if regions == len(REGIONS[1]) else 2
