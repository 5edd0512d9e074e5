"""Store training runs on disk, one at a time, with a log, a state and curves; the next start continues a run."""

import json
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Final, Literal

from totalspineseg_server.corrections.ids import time_after
from totalspineseg_server.errors import StorageError, TrainingError
from totalspineseg_server.files import from_fields, read_json_or, storage_errors, write_json
from totalspineseg_server.locks import file_lock, is_locked
from totalspineseg_server.nnunet.training_log import Progress, TrainingLog
from totalspineseg_server.training import training_messages
from totalspineseg_server.training.retrain_settings import RetrainSettings

logger = logging.getLogger(__name__)

RUN_FILE, PROGRESS_FILE, LOCK_FILE = "run.json", "progress.json", ".training"
LOCK_WAIT_S: Final = 0.5
"""How long to wait for the lock, seconds: ``is_running`` holds it only for an instant."""
PROGRESS_EVERY_S: Final = 1.0
"""Shortest time between two writes of the progress, seconds: clients ask every few seconds."""

Status = Literal["running", "stopped", "failed", "interrupted", "published", "kept", "refused"]
"""The last three are final: in use; passed, but other weights are in use since the comparison; refused by the gate."""
RESUMABLE: Final = ("running", "stopped", "failed", "interrupted")
"""States from which a run can be continued; "running" without its lock means that the process was killed."""


@dataclass(frozen=True)
class RunState:
    """State of a run, as clients see it.

    Attributes:
        run: Its id.
        status: See ``Status``.
        step: Step in training; 0 before and after.
        epoch: Number of reports so far, of all steps.
        total_epochs: Number of reports of the whole run.
        seconds: Time that the present process has spent on the run.
        best_metric: Best mean pseudo Dice of the step in training, afterwards of the last step; None before the first
            report.
        message: One sentence.
    """

    run: str
    status: Status
    step: int = 0
    epoch: int = 0
    total_epochs: int = 0
    seconds: float = 0.0
    best_metric: float | None = None
    message: str = ""


@contextmanager
def only_one(training_dir: Path) -> Iterator[IO[str]]:
    """Hold the training lock, which is released even if its holder is killed.

    Yields:
        The lock's open file; a child process that inherits it holds the lock too.

    Raises:
        TrainingError: Another process is training for this site.
        StorageError: The folder cannot be written.
    """
    with file_lock(training_dir / LOCK_FILE, LOCK_WAIT_S) as stream:
        if stream is None:
            raise TrainingError(training_messages.TRAINING_RUNS)
        yield stream


def is_running(training_dir: Path) -> bool:
    """Return whether a process is training for this site."""
    return is_locked(training_dir / LOCK_FILE)


def begin(training_dir: Path, key: str, about: Mapping[str, Any], *, resume: bool) -> Path:
    """Return the folder of the run to work on: the newest one if it is unfinished and has the same key, else a new one.

    Args:
        training_dir: Folder of the runs. The caller holds the lock.
        key: Identifies the material and settings.
        about: Stored in the run's record.
        resume: Whether an unfinished run may continue.

    Raises:
        StorageError: It cannot be written.
    """
    newest = newest_run(training_dir)
    if resume and newest is not None:
        # A run whose record is missing or damaged is simply not continued.
        record, progress = read_json_or(newest / RUN_FILE, {}), read_json_or(newest / PROGRESS_FILE, {})
        if record.get("key") == key and progress.get("status", "running") in RESUMABLE:
            return newest
    begun = time_after([] if newest is None else [newest.name], timedelta(seconds=1))
    run_id = f"{begun:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    folder = training_dir / run_id
    with storage_errors(training_dir):
        folder.mkdir(parents=True)
    write_json(folder / RUN_FILE, {"run": run_id, "key": key, **about})
    return folder


def newest_run(training_dir: Path) -> Path | None:
    """Return the run that began last, or None."""
    if not training_dir.is_dir():
        return None
    return max((p for p in training_dir.iterdir() if (p / RUN_FILE).is_file()), default=None)


def state_of(training_dir: Path) -> RunState | None:
    """Return the state of the newest run, for clients; a killed one is "interrupted". None if there is none."""
    newest = newest_run(training_dir)
    if newest is None:
        return None
    content = read_json_or(newest / PROGRESS_FILE, {})
    try:
        state = from_fields(RunState, content, f"of run {newest.name}")
    except StorageError:
        state = RunState(newest.name, "running")
    if state.status == "running" and not is_running(training_dir):
        return replace(state, status="interrupted")
    return state


class ProgressFile:
    """Writes the state of a run, not too often.

    Args:
        run: The run's folder.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / PROGRESS_FILE
        self._written = 0.0

    def write(self, state: RunState, *, now: bool = False) -> bool:
        """Store a state, but not too often; with ``now``, always.

        Returns:
            Whether it was time to store it.

        Raises:
            StorageError: It cannot be written.
        """
        if not now and time.monotonic() - self._written < PROGRESS_EVERY_S:
            return False
        write_json(self._path, asdict(state))
        self._written = time.monotonic()
        return True

    def write_last(self, state: RunState) -> None:
        """Store the final state of a run; on a full disk, overwrite the previous one, which takes no new space.

        If the process is killed during this, half a state may be left, and the run shows as interrupted.
        """
        try:
            write_json(self._path, asdict(state))
        except StorageError:
            try:
                with self._path.open("r+", encoding="utf-8") as stream:
                    stream.write(json.dumps(asdict(state)))
                    stream.truncate()
            except OSError:
                logger.warning("The state of run %s could not be written: %s", state.run, state.message)


MAX_POINTS: Final = 400
"""Largest number of points of a curve that are sent: more than the pixels of a picture."""


def curves_of(training_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the curves of the newest training.

    Returns:
        Step -> ``iterations``, ``loss`` and ``dice`` (structure -> values; None if there was nothing to find).
    """
    run = newest_run(training_dir)
    found = {}
    for folder in sorted(run.glob("step*")) if run is not None else ():
        # If iterations were repeated after an interruption, the last values count.
        events = {event["iteration"]: event for event in TrainingLog(folder).events() if "dice" in event}
        points = [events[iteration] for iteration in sorted(events)]
        points = points[:: 1 + len(points) // MAX_POINTS]
        names = dict.fromkeys(name for point in points for name in point["dice"])
        found[folder.name.removeprefix("step")] = {
            "iterations": [point["iteration"] for point in points],
            "loss": [point.get("loss") for point in points],
            "dice": {name: [point["dice"].get(name) for point in points] for name in names},
        }
    return found


def seconds_left(state: RunState) -> float | None:
    """Return the seconds left in a running training, if all reports take the same time; None if unknown."""
    if state.status != "running" or not state.epoch:
        return None
    return round(state.seconds * (state.total_epochs - state.epoch) / state.epoch)


class Reporter:
    """Writes the log and the state of one run.

    Args:
        run: The run's folder.
        settings: Settings of the run.
        show: Called with each line about what the run is doing.
    """

    def __init__(self, run: Path, settings: RetrainSettings, show: Callable[[str], None] = lambda line: None) -> None:
        self._run, self._show = run, show
        self._log = TrainingLog(run)
        self._progress = ProgressFile(run)
        self._steps, self._finetune = settings.steps, settings.finetune
        self._epochs = -(-settings.finetune.iterations // settings.finetune.epoch)
        self._epochs_done = 0
        self._best: float | None = None
        self._begun = time.monotonic()

    def say(self, text: str, **values: Any) -> None:
        """Write a line into the log, see ``TrainingLog.say``; a full disk does not end the training."""
        self._show(text)
        try:
            self._log.say(text, **values)
        except OSError as error:
            logger.warning("%s (not in the log of run %s: %s)", text, self._run.name, error)

    def tell(self, message: str, *, now: bool = True) -> None:
        """Report what the run is doing before or after training; if ``now`` is False, the newest report is written only
        now and then.

        Raises:
            StorageError: It cannot be written.
        """
        if self._progress.write(self._state("running", message=message), now=now):
            self._show(message)

    def trained(self, progress: Progress) -> None:
        """Report the progress of a training.

        Raises:
            StorageError: It cannot be written.
        """
        done = progress.iteration == self._finetune.iterations
        epoch = self._epochs if done else progress.iteration // self._finetune.epoch
        self._epochs_done = self._steps.index(progress.step) * self._epochs + epoch
        self._best = None if progress.best != progress.best else round(progress.best, 4)
        self._progress.write(self._state("running", step=progress.step))
        if done or progress.iteration % self._finetune.epoch == 0:
            self._show(f"step {progress.step}: iteration {progress.iteration} of {self._finetune.iterations}")

    def finished(self, step: int, best: float | None) -> None:
        """Report that a step is trained, perhaps by an earlier process."""
        self._epochs_done = (self._steps.index(step) + 1) * self._epochs
        self._best = None if best is None else round(best, 4)

    def end(self, status: Status, message: str) -> None:
        """Report how the run ended or paused, even on a full disk."""
        self._progress.write_last(self._state(status, message=message))

    def _state(self, status: Status, *, step: int = 0, message: str = "") -> RunState:
        return RunState(
            run=self._run.name,
            status=status,
            step=step,
            epoch=self._epochs_done,
            total_epochs=len(self._steps) * self._epochs,
            seconds=round(time.monotonic() - self._begun, 1),
            best_metric=self._best,
            message=message,
        )
