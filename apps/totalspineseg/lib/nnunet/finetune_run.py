"""The loop of a fine-tuning: batches, gradients, reports and stored states of one process."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch

from lib.errors import TrainingError
from lib.nnunet.cases import Origin, TrainingCase
from lib.nnunet.finetune_settings import FinetuneSettings
from lib.nnunet.model_folder import ModelFolder
from lib.nnunet.predictor import is_out_of_memory
from lib.nnunet.runtimes import resolve_devices
from lib.nnunet.sampler import Batch, Sampler
from lib.nnunet.targets import Step
from lib.nnunet.teacher import Teacher
from lib.nnunet.team import ALONE, Team
from lib.nnunet.training import (
    GRADIENT_NORM,
    RegionCounts,
    computes_in_half,
    learning_rate,
    mean_dice,
    region_loss,
    usual_rate,
)
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


def finetuning_key(folder: ModelFolder, cases: Sequence[TrainingCase], settings: FinetuneSettings) -> str:
    """What a training is about, wherever it runs: the key of its state."""
    return run_key(
        {
            "parent": folder.digest,
            "settings": asdict(settings) | {"device": "", "gpus": 1},
            "cases": [(case.name, case.origin.value, case.codes.shape) for case in cases],
        }
    )


class Run:
    """One training in progress, or one process's part of it.

    Args:
        folder: As in ``fine_tune``, like ``cases``, ``work`` and ``settings``.
        cases: Not modified.
        work: Only the leading process writes there.
        settings: The same in every process.
        team: This process and the others.

    Raises:
        TrainingError: The processes of a team have not read the same state.
    """

    def __init__(
        self,
        folder: ModelFolder,
        cases: Sequence[TrainingCase],
        work: Path,
        settings: FinetuneSettings,
        team: Team = ALONE,
    ) -> None:
        self.settings, self.team = settings, team
        self.step = cast(Step, folder.step)
        self.sampler = Sampler(
            cases, folder, replay_share=settings.replay_share, strength=settings.strength, seed=settings.seed
        )
        self.work = work
        self.log = TrainingLog(work)
        self.devices = resolve_devices(settings.device, team.size)
        self.device = self.devices[team.rank]
        self.batch_size = settings.batch_size
        self.key = finetuning_key(folder, cases, settings)
        self.teacher: Teacher | None = None
        with self._memory_for(f"the network of step {self.step}"):
            self.network = folder.load_network().requires_grad_(True).train().to(self.device)
            if settings.teacher_share and any(case.origin is Origin.SYNTHETIC for case in cases):
                self.teacher = Teacher(folder.load_network().to(self.device), settings.teacher_share)
        self.peak = settings.learning_rate or usual_rate(self.network)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.peak, weight_decay=1e-4)
        self.half = computes_in_half(self.device)
        self.iteration = 0
        self.best = math.nan
        self._restore()
        if not team.all_have(self.iteration):
            raise TrainingError(
                f"one stored state is required by all {team.size} processes, got several or none in some; start again"
            )

    def _restore(self) -> None:
        state = load_state(self.work, self.key)
        if state is None:
            return
        self.network.load_state_dict(state.weights)
        self.optimizer.load_state_dict(dict(state.optimizer))
        self.iteration, self.batch_size = state.iteration, state.batch_size
        self.best = math.nan if state.best is None else state.best

    def go(self, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]) -> Finetuned:
        """Train until the end.

        Args:
            on_progress: See ``fine_tune``.
            should_stop: If that of one process says so, all of them stop.

        Raises:
            Stopped: See ``fine_tune``, like ``TrainingError`` and ``StorageError``.
        """
        settings, first = self.settings, self.iteration
        verb = f"resumed at iteration {first}" if first else "started"
        where = ", ".join(map(str, self.devices))
        size = f"batch size {self.batch_size}, learning rate {self.peak:.2g} at most"
        self._say(f"{verb} of {settings.iterations} on {where}, {size}", iteration=first)
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
            if self.team.any(should_stop()) and not done:
                self._store()
                self._say(f"stopped at iteration {self.iteration}", iteration=self.iteration)
                raise Stopped(f"stopped at iteration {self.iteration} of {settings.iterations}")
        weights = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
        return Finetuned(weights, self.best, self.batch_size, first)

    def _train_once(self) -> float:
        """One step of the optimizer; with less memory than thought, in smaller passes."""
        settings = self.settings
        rate = learning_rate(self.iteration, total=settings.iterations, warmup=settings.warmup, peak=self.peak)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self._batch()
        while True:
            short = False
            try:
                total = self._gradient(batch)
            except (RuntimeError, MemoryError) as error:
                if not _lacks_memory(error):
                    raise
                if self._pass_size == 1:
                    raise self._too_little(f"one patch of step {self.step}") from error
                short = True
            # Outside the handler: its traceback would keep the tensors alive. All devices keep the same passes.
            if not self.team.any(short):
                return self._update(total)
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.batch_size = self._pass_size // 2
            self._say(f"memory does not suffice, going on with passes of {self.batch_size}")

    @property
    def _pass_size(self) -> int:
        """Patches in a pass: no more than the largest part of a batch."""
        return min(self.batch_size, math.ceil(self.settings.batch_size / self.team.size))

    def _batch(self) -> Batch:
        """This process's part of the batch: each patch is drawn by its own number, and by one process alone."""
        size = self.settings.batch_size
        return self.sampler.batch(self.iteration * size + k for k in self.team.share(size))

    def _gradient(self, batch: Batch) -> float:
        """Sum the gradient of this process's part; returns that part of the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        total, size = 0.0, self._pass_size
        for first in range(0, len(batch.target), size):
            channels = batch.channels[first : first + size].to(self.device)
            target = batch.target[first : first + size].to(self.device)
            synthetic = batch.synthetic[first : first + size].to(self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
                if self.teacher is not None:
                    target = self.teacher.mix(channels, target, synthetic)
                logits = self.network(channels)
            share = len(target) / self.settings.batch_size
            loss = region_loss(logits.float(), target) * share
            loss.backward()
            total += float(loss.detach())
        return total

    def _update(self, part: float) -> float:
        """Move the weights by the gradient of all processes; returns the loss, nan if nothing was moved."""
        total = self.team.total(part)
        self.team.add(p.grad for p in self.network.parameters() if p.grad is not None)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
        if not (math.isfinite(total) and bool(torch.isfinite(norm))):
            return math.nan
        # Some weights may have moved when memory runs out: the last stored state is what to go on from.
        with self._memory_for(f"the optimizer of step {self.step}"):
            self.optimizer.step()
        return total

    @contextmanager
    def _memory_for(self, what: str) -> Iterator[None]:
        """Too little memory within becomes one sentence."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not _lacks_memory(error):
                raise
            raise self._too_little(what) from error

    def _too_little(self, what: str) -> TrainingError:
        return TrainingError(
            f"memory for {what} is required on {self.device}, got too little; stop other programs on the device or "
            "train on another one"
        )

    def _report(self, losses: list[float]) -> None:
        if not self.team.leads:
            return
        counts = RegionCounts(self.step)
        self.network.eval()
        with torch.inference_mode(), self._memory_for(f"a report on step {self.step}"):
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
        self._say(
            f"iteration {self.iteration} of {self.settings.iterations}, loss {loss:.3f}, "
            f"pseudo Dice: {dice_text(dice)}",
            **_epoch_values(self.iteration, loss, dice),
        )
        self.log.draw()

    def _store(self) -> None:
        if not self.team.leads:
            return
        best = None if math.isnan(self.best) else self.best
        state = TrainingState(
            self.iteration, self.network.state_dict(), self.optimizer.state_dict(), self.batch_size, best
        )
        save_state(self.work, self.key, state)

    def _say(self, text: str, **values: Any) -> None:
        if self.team.leads:
            self.log.say(f"step {self.step}: {text}", **values)


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error))


def _epoch_values(iteration: int, loss: float, dice: Any) -> dict[str, Any]:
    """nan and 0.0 stay apart in the JSON line: null and 0.0."""
    return {"iteration": iteration, "loss": loss, "dice": dict(dice)}
