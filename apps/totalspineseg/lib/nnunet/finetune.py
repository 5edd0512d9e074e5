"""Fine-tuning one step's network from the active weights, head included, for a stated number of iterations."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch

from lib.errors import TrainingError
from lib.nnunet.cases import TrainingCase
from lib.nnunet.finetune_settings import FinetuneSettings
from lib.nnunet.model_folder import ModelFolder
from lib.nnunet.predictor import is_out_of_memory
from lib.nnunet.runtimes import resolve_device
from lib.nnunet.sampler import Batch, Sampler
from lib.nnunet.targets import Step
from lib.nnunet.training import GRADIENT_NORM, RegionCounts, learning_rate, mean_dice, region_loss
from lib.nnunet.training_log import TrainingLog, dice_text
from lib.nnunet.training_state import TrainingState, load_state, run_key, save_state

BAD_LOSSES: Final = 10
"""So many losses in a row that are not finite end a training: it will not recover."""


@dataclass(frozen=True)
class Progress:
    """Where a training is.

    Attributes:
        step: 1 or 2.
        iteration: Iterations done.
        iterations: Of the whole run.
        seconds: Spent in this process.
        best: Best mean pseudo Dice so far; nan before the first report.
    """

    step: int
    iteration: int
    iterations: int
    seconds: float
    best: float


@dataclass(frozen=True)
class Finetuned:
    """A finished training.

    Attributes:
        weights: Of the network, on the CPU.
        best: Best mean pseudo Dice.
        batch_size: Patches in a pass at the end.
        resumed_at: Iteration at which this process took over; 0 for a fresh start.
    """

    weights: dict[str, torch.Tensor]
    best: float
    batch_size: int
    resumed_at: int


class Stopped(Exception):
    """The training was asked to stop; its state is stored and the next start goes on from it."""


def fine_tune(
    folder: ModelFolder,
    cases: Sequence[TrainingCase],
    work: Path,
    settings: FinetuneSettings | None = None,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Finetuned:
    """Train a copy of a model on cases; killed at any moment, it goes on from its last stored state.

    Args:
        folder: The model to start from.
        cases: Corrections and replay, prepared for this folder. Not modified.
        work: Folder of this run: state and logs.
        settings: How.
        on_progress: Told after every iteration.
        should_stop: Asked after every iteration.

    Returns:
        The weights after the last iteration.

    Raises:
        LabelError: There is no case.
        TrainingError: Memory does not suffice for one patch, or the loss is not finite for long.
        StorageError: The state cannot be written; the one before is still there.
        Stopped: ``should_stop`` said so.
    """
    return _Run(folder, cases, work, settings or FinetuneSettings()).go(on_progress, should_stop)


class _Run:
    """One training in progress."""

    def __init__(
        self, folder: ModelFolder, cases: Sequence[TrainingCase], work: Path, settings: FinetuneSettings
    ) -> None:
        self.settings = settings
        self.step = cast(Step, folder.step)
        self.sampler = Sampler(
            cases, folder, replay_share=settings.replay_share, strength=settings.strength, seed=settings.seed
        )
        self.work = work
        self.log = TrainingLog(work)
        self.device = resolve_device(settings.device)
        self.batch_size = settings.batch_size
        self.key = run_key(
            {
                "parent": folder.digest,
                "settings": asdict(settings) | {"device": ""},
                "cases": [(case.name, case.origin.value, case.codes.shape) for case in cases],
            }
        )
        self.network = folder.load_network().requires_grad_(True).train().to(self.device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
        # Half precision where the GPU computes in it itself; float16 would need its gradients scaled.
        self.half = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        self.iteration = 0
        self.best = math.nan
        self._restore()

    def _restore(self) -> None:
        state = load_state(self.work, self.key)
        if state is None:
            return
        self.network.load_state_dict(state.weights)
        self.optimizer.load_state_dict(dict(state.optimizer))
        self.iteration, self.batch_size = state.iteration, state.batch_size
        self.best = math.nan if state.best is None else state.best

    def go(self, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]) -> Finetuned:
        """Train until the end."""
        settings, first = self.settings, self.iteration
        verb = f"resumed at iteration {first}" if first else "started"
        self.log.say(
            f"step {self.step}: {verb} of {settings.iterations} on {self.device}, batch size {self.batch_size}",
            iteration=first,
        )
        start, losses, bad = time.monotonic(), [], 0
        while self.iteration < settings.iterations:
            loss = self._train_once()
            bad = bad + 1 if math.isnan(loss) else 0
            if bad >= BAD_LOSSES:
                raise TrainingError(
                    f"a finite loss is required, got none for {BAD_LOSSES} iterations; choose a lower learning rate"
                )
            losses.append(loss)
            self.iteration += 1
            done = self.iteration == settings.iterations
            if done or self.iteration % settings.epoch == 0:
                self._report(losses)
                losses = []
            if done or self.iteration % settings.checkpoint_every == 0:
                self._store()
            on_progress(Progress(self.step, self.iteration, settings.iterations, time.monotonic() - start, self.best))
            if should_stop() and not done:
                self._store()
                self.log.say(f"step {self.step}: stopped at iteration {self.iteration}", iteration=self.iteration)
                raise Stopped(f"stopped at iteration {self.iteration} of {settings.iterations}")
        self.log.draw()
        weights = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
        return Finetuned(weights, self.best, self.batch_size, first)

    def _train_once(self) -> float:
        """One step of the optimizer; with less memory than thought, in smaller passes."""
        settings = self.settings
        rate = learning_rate(
            self.iteration, total=settings.iterations, warmup=settings.warmup, peak=settings.learning_rate
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.sampler.batch(self.iteration, settings.batch_size)
        while True:
            try:
                return self._step(batch)
            except (RuntimeError, MemoryError) as error:
                if not (isinstance(error, MemoryError) or is_out_of_memory(error)):
                    raise
                if self.batch_size == 1:
                    raise TrainingError(
                        f"memory for one patch of step {self.step} is required on {self.device}, got too little; "
                        "stop other programs on the device or train on another one"
                    ) from error
            # Outside the handler: its traceback would keep the tensors alive.
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.batch_size = max(1, self.batch_size // 2)
            self.log.say(f"step {self.step}: memory does not suffice, going on with passes of {self.batch_size}")

    def _step(self, batch: Batch) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        total, count = 0.0, len(batch.target)
        for first in range(0, count, self.batch_size):
            channels = batch.channels[first : first + self.batch_size].to(self.device)
            target = batch.target[first : first + self.batch_size].to(self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
                logits = self.network(channels)
            loss = region_loss(logits.float(), target, self.step) * (len(target) / count)
            loss.backward()
            total += float(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
        if not (math.isfinite(total) and bool(torch.isfinite(norm))):
            return math.nan
        self.optimizer.step()
        return total

    def _report(self, losses: list[float]) -> None:
        counts = RegionCounts(self.step)
        self.network.eval()
        with torch.inference_mode():
            for number in range(self.settings.validation_patches):
                batch = self.sampler.validation(number)
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
                    logits = self.network(batch.channels.to(self.device))
                counts.add(logits.float().cpu(), batch.target)
        self.network.train()
        dice = counts.dice()
        mean = mean_dice(dice)
        self.best = mean if math.isnan(self.best) else max(self.best, mean)
        finite = [loss for loss in losses if not math.isnan(loss)]
        loss = sum(finite) / len(finite) if finite else math.nan
        self.log.say(
            f"step {self.step}: iteration {self.iteration} of {self.settings.iterations}, loss {loss:.3f}, "
            f"pseudo Dice: {dice_text(dice)}",
            **_epoch_values(self.iteration, loss, dice),
        )

    def _store(self) -> None:
        best = None if math.isnan(self.best) else self.best
        state = TrainingState(
            self.iteration, self.network.state_dict(), self.optimizer.state_dict(), self.batch_size, best
        )
        save_state(self.work, self.key, state)


def _epoch_values(iteration: int, loss: float, dice: Any) -> dict[str, Any]:
    """nan and 0.0 stay apart in the JSON line: null and 0.0."""
    return {"iteration": iteration, "loss": loss, "dice": dict(dice)}
