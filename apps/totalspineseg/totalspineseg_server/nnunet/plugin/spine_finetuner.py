"""Extend nnU-Net's trainer for fine-tuning: start from all weights of a parent, and train on corrections and replay."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import nn
from torch.utils.data import DataLoader

from totalspineseg_server.errors import TrainingError
from totalspineseg_server.nnunet import nnunet_messages
from totalspineseg_server.nnunet.cases import Origin
from totalspineseg_server.nnunet.finetune_job import (
    FINETUNING,
    IDENTIFIER,
    ITERATION,
    KEY,
    LATEST,
    PASS_SIZE,
    STATES,
    Job,
    Stopped,
)
from totalspineseg_server.nnunet.patches import Patches, Sample
from totalspineseg_server.nnunet.plugin.spine_trainer import SpineTrainer
from totalspineseg_server.nnunet.predictor import is_out_of_memory
from totalspineseg_server.nnunet.training import (
    GRADIENT_NORM,
    Teacher,
    computes_in_half,
    deep_loss,
    learning_rate,
    region_hits,
    usual_rate,
)
from totalspineseg_server.nnunet.training_log import Progress, TrainingLog

BAD_LOSSES: Final = 10
"""A training ends after this many losses in a row that are not finite, because it will not recover."""
STATE_SECONDS: Final = 60.0
"""Seconds after which another state is stored even within an epoch: with large networks on a CPU an epoch takes an
hour, and writing a state takes seconds."""
OUTPUT_FILE: Final = "nnunet.txt"
"""File with the output of nnU-Net."""
WEIGHT_DECAY: Final = 1e-4
"""Weight decay of AdamW."""


class WarmCosine(PolyLRScheduler):  # type: ignore[misc]
    """A linear warm-up, then half a cosine, in place of nnU-Net's polynomial; see ``training.learning_rate``.

    Args:
        optimizer: Optimizer whose rate is set.
        peak: The highest rate.
        epochs: Epochs of the whole run.
        warmup: Epochs until the peak.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, peak: float, epochs: float, warmup: float) -> None:
        self._warmup = warmup
        super().__init__(optimizer, peak, epochs)

    def step(self, current_step: float | None = None) -> None:
        """Set the learning rate for a time, which is counted in epochs."""
        at = max(0.0, current_step or 0.0)
        rate = learning_rate(at, total=self.max_steps, warmup=self._warmup, peak=self.initial_lr)
        for group in self.optimizer.param_groups:
            group["lr"] = rate


class Waiting(Iterator[Sample]):
    """Passes on batches and measures how long the training waited for them.

    Args:
        batches: The source of the batches.

    Attributes:
        seconds: Time waited so far; if batches are made in this process, this is the time that making them took.
    """

    def __init__(self, batches: Iterator[Sample]) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __next__(self) -> Sample:
        """Return the next batch."""
        begun = time.monotonic()
        batch = next(self._batches)
        self.seconds += time.monotonic() - begun
        return batch


class SpineFinetuner(SpineTrainer):
    """nnU-Net's trainer for fine-tuning; its arguments are nnU-Net's, its job is in a file beside the cases.

    Attributes:
        on_progress: Called after every iteration.
        should_stop: Called after every iteration.
    """

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        if not self.is_ddp:
            # nnU-Net uses the first GPU, even if another one was requested.
            self.device = device
        # bfloat16 needs no scaled gradients.
        self.grad_scaler = None
        self.output_folder = str(self.job.work)
        self.log_file = str(self.job.work / OUTPUT_FILE)
        self.num_val_iterations_per_epoch = self.job.settings.validation_patches
        self.save_every = 1
        self.log = TrainingLog(self.job.work)
        self.half = computes_in_half(self.device)
        self.iteration, self.bad_losses = 0, 0
        self.pass_size = self.job.settings.batch_size
        self.teacher: Teacher | None = None
        self.begun = self.stored = time.monotonic()
        self.on_progress: Callable[[Progress], None] = lambda _: None
        self.should_stop: Callable[[], bool] = lambda: False

    # --- its job

    @cached_property
    def job(self) -> Job:
        """The job: parent, cases and settings."""
        return Job.read(Path(self.preprocessed_dataset_folder_base))

    def epochs_and_iterations(self) -> tuple[int, int]:
        """Return the number of epochs, of which the last may be shorter, and the iterations in each."""
        settings = self.job.settings
        return math.ceil(settings.iterations / settings.epoch), settings.epoch

    @property
    def iterations_done(self) -> int:
        """Iterations done, including those of an unfinished epoch."""
        return self.iteration

    @property
    def waited(self) -> float:
        """Share of the time since the start, in this process, in which the training waited for patches."""
        waiting = self.dataloader_train.seconds if isinstance(self.dataloader_train, Waiting) else 0.0
        return min(1.0, waiting / max(time.monotonic() - self.begun, 1e-6))

    @property
    def best(self) -> float:
        """The best mean pseudo Dice so far; nan before the first report."""
        values = self.logger.get_value("mean_fg_dice", step=None)
        return float(np.fmax.reduce(values)) if values else math.nan

    # --- the network, its optimizer and its loss

    def initialize(self) -> None:
        """Build nnU-Net's parts from the parent's weights, and the teacher."""
        settings, parent = self.job.settings, self.job.parent
        with self._memory_for(f"the network of step {parent.step}"):
            super().initialize()
            if settings.teacher_share and any(case.origin is Origin.UNCORRECTED for case in self.job.cases):
                self.teacher = Teacher(parent.load_network().to(self.device), settings.teacher_share)

    def build_network_architecture(
        self,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Return the network of the plans with all weights of the parent, segmentation heads included."""
        network: nn.Module = SpineTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        network.load_state_dict(self.job.parent.load_network().state_dict())
        return network

    def _do_i_compile(self) -> bool:
        """Return False, because compiling takes longer than it saves in these trainings."""
        return False

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """Return AdamW with ``WarmCosine``, or nnU-Net's optimizer with its own schedule."""
        settings = self.job.settings
        if settings.optimizer == "sgd":
            if settings.learning_rate is not None:
                self.initial_lr = settings.learning_rate
            optimizer, scheduler = super().configure_optimizers()
            return optimizer, scheduler
        self.initial_lr, self.weight_decay = settings.learning_rate or usual_rate(self.network), WEIGHT_DECAY
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        total, warmup = settings.iterations / settings.epoch, settings.warmup / settings.epoch
        return optimizer, WarmCosine(optimizer, self.initial_lr, total, warmup)

    def _build_loss(self) -> Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]:
        return self.loss_of

    def loss_of(self, logits: Any, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the loss at every resolution. Targets are shares of voxels; voxels that nobody checked do not
        count."""
        levels = [level.float() for level in logits]
        loss = deep_loss(levels, target.float(), weight.float())
        # In distributed training, the loss must depend on every weight.
        return loss + 0 * levels[-1].sum() if self.is_ddp else loss

    # --- its patches

    def get_dataloaders(self) -> tuple[Iterator[Sample], Iterator[Sample]]:
        """Return an iterator over the remaining augmented patches, and an endless one over patches without
        augmentation."""
        settings = self.job.settings
        patches = Patches(
            self.job.cases,
            Path(self.preprocessed_dataset_folder_base) / IDENTIFIER,
            # The size of a patch comes from the plans of this training.
            replace(self.job.parent, configuration=self.configuration_manager.configuration),
            replay_share=settings.replay_share,
            accepted_share=settings.accepted_share,
            strength=settings.strength,
            seed=settings.seed,
        )
        training = DataLoader(
            patches,
            batch_sampler=list(self._numbers()),
            num_workers=0 if self.device.type == "cpu" else get_allowed_n_proc_DA(),
            pin_memory=self.device.type == "cuda",
        )
        unvaried = (patches.validation(k % settings.validation_patches) for k in count())
        return Waiting(iter(training)), ({name: value[None] for name, value in patch.items()} for patch in unvaried)

    def _numbers(self) -> Iterator[range]:
        """Yield the patch numbers of each remaining batch; in distributed training, those of this process."""
        size = self.job.settings.batch_size
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if self.is_ddp else (0, 1)
        for iteration in range(self.iterations_done, self.job.settings.iterations):
            first = iteration * size
            yield range(first + rank * size // ranks, first + (rank + 1) * size // ranks)

    # --- one iteration

    def train_step(self, batch: Sample) -> dict[str, float]:
        """Update the weights once, and report the progress."""
        self.lr_scheduler.step(self.iteration / self.job.settings.epoch)
        loss = self._update(batch)
        self.bad_losses = self.bad_losses + 1 if math.isnan(loss) else 0
        if self.bad_losses >= BAD_LOSSES:
            raise TrainingError(nnunet_messages.LOSS_NOT_FINITE.format(count=BAD_LOSSES))
        self.iteration += 1
        # The last iteration of an epoch is reported when the state is stored.
        if self.iteration % self.job.settings.epoch and self.iteration < self.job.settings.iterations:
            if time.monotonic() - self.stored >= STATE_SECONDS:
                self._store()
            self._tell()
        return {"loss": loss}

    def _update(self, batch: Sample) -> float:
        """Do one step of the optimizer; return the loss, or nan if the weights did not change."""
        total = self._gradient(batch)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
        if not (math.isfinite(total) and bool(torch.isfinite(norm))):
            return math.nan
        # Some weights may have changed if memory runs out, so only the last stored state can be continued.
        with self._memory_for(f"the optimizer of step {self.job.parent.step}"):
            self.optimizer.step()
        return total

    def _gradient(self, batch: Sample) -> float:
        """Sum the gradient of a batch, in smaller passes if there is too little memory."""
        step = self.job.parent.step
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                return self._passes(batch)
            except (RuntimeError, MemoryError) as error:
                if not _lacks_memory(error):
                    raise
                if self.pass_size == 1 or self.is_ddp:
                    patches = "one patch" if self.pass_size == 1 else f"{self.pass_size} patches"
                    raise self._too_little(f"{patches} of step {step}") from error
            # This is done outside the handler, because the traceback would keep the tensors alive.
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.pass_size = min(self.pass_size, len(batch["target"])) // 2
            self.log.say(f"step {step}: there is too little memory, continuing with passes of {self.pass_size}")

    def _passes(self, batch: Sample) -> float:
        total, size = 0.0, len(batch["target"])
        for first in range(0, size, self.pass_size):
            part = {name: value[first : first + self.pass_size] for name, value in batch.items()}
            part = {name: value.to(self.device, non_blocking=True) for name, value in part.items()}
            target = part["target"]
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
                if self.teacher is not None:
                    target = self.teacher.mix(part["data"], target, part["uncorrected"])
                logits = self.network(part["data"])
            loss = self.loss(logits, target, part["weight"]) * (len(target) / size)
            loss.backward()
            total += float(loss.detach())
        return total

    def validation_step(self, batch: Sample) -> dict[str, Any]:
        """Count right, false and missed voxels in a patch without augmentation."""
        data, target, weight = (batch[name].to(self.device) for name in ("data", "target", "weight"))
        with self._memory_for(f"a report on step {self.job.parent.step}"):
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
                logits = self.network(data)
            loss = float(self.loss(logits, target, weight))
            hits = region_hits(logits[0].float(), target)
        right, false, missed = (counts.cpu().numpy() for counts in hits)
        return {"loss": loss, "tp_hard": right, "fp_hard": false, "fn_hard": missed}

    # --- epochs, states, output

    def on_train_start(self) -> None:
        """Begin or continue the training."""
        first = self.iteration
        super().on_train_start()
        verb = f"resumed at iteration {first}" if first else "started"
        size = f"passes of {self.pass_size} patches, learning rate {self.initial_lr:.2g} at most"
        self.begun = time.monotonic()
        self._say(f"{verb} of {self.job.settings.iterations} on {self.device}, {size}", iteration=first)

    def on_train_end(self) -> None:
        """Log how much of the time the device waited."""
        super().on_train_end()
        self._say(f"ended; it waited for patches {self.waited:.0%} of the time", waited=self.waited)

    def on_epoch_start(self) -> None:
        """End an epoch where it would have ended without interruption, and the last one with the last iteration."""
        super().on_epoch_start()
        settings = self.job.settings
        end = min(settings.epoch * (int(self.current_epoch) + 1), settings.iterations)
        self.num_iterations_per_epoch = end - self.iteration

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Let nnU-Net average only the losses that were finite."""
        super().on_train_epoch_end([o for o in train_outputs if not math.isnan(o["loss"])] or train_outputs)

    def on_epoch_end(self) -> None:
        """Report and store the state, then report the progress."""
        super().on_epoch_end()
        self._tell()

    def save_checkpoint(self, filename: str) -> None:
        """Store the state with its job. There is no best state, because the gate judges the last one."""
        if Path(filename).name in STATES:
            state = {KEY: self.job.key, PASS_SIZE: self.pass_size, ITERATION: self.iteration}
            self.my_init_kwargs[FINETUNING] = state
            super().save_checkpoint(filename)
            self.stored = time.monotonic()

    def on_state_loaded(self) -> None:
        """Continue within an epoch, with passes as small as they had become."""
        state, settings = self.my_init_kwargs[FINETUNING], self.job.settings
        self.pass_size, self.iteration = int(state[PASS_SIZE]), int(state[ITERATION])
        ended = self.iteration == settings.iterations
        self.current_epoch = self.num_epochs if ended else self.iteration // settings.epoch
        # The values of an unfinished epoch are logged again.
        for values in self.logger.local_logger.my_fantastic_logging.values():
            del values[self.current_epoch :]

    def _save_debug_information(self) -> None:
        """Do nothing: the run's record and logs have this information."""

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Do nothing: the gate validates, and whole scans from the training would show nothing."""

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Write nnU-Net's output to a file only, because the output of this process belongs to its caller."""
        super().print_to_log_file(*args, also_print_to_console=False, add_timestamp=add_timestamp)

    def plot_network_architecture(self) -> None:
        """Do nothing: it needs a package that nnU-Net does not install."""

    def _say(self, text: str, **values: Any) -> None:
        if self.local_rank == 0:
            self.log.say(f"step {self.job.parent.step}: {text}", **values)

    def _tell(self) -> None:
        """Report the progress, and stop if requested."""
        step, iterations = self.job.parent.step, self.job.settings.iterations
        seconds = time.monotonic() - self.begun
        self.on_progress(Progress(step, self.iteration, iterations, seconds, self.best, self.waited))
        if self.should_stop() and self.iteration < iterations:
            self._store()
            text = f"stopped at iteration {self.iteration} of {iterations}"
            self._say(text, iteration=self.iteration)
            raise Stopped(text)

    def _store(self) -> None:
        self.save_checkpoint(str(Path(self.output_folder) / LATEST))

    @contextmanager
    def _memory_for(self, what: str) -> Iterator[None]:
        """Raise an understandable error if there is too little memory in this block."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not _lacks_memory(error):
                raise
            raise self._too_little(what) from error

    def _too_little(self, what: str) -> TrainingError:
        return TrainingError(nnunet_messages.TOO_LITTLE_MEMORY.format(device=self.device, what=what))


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error))
