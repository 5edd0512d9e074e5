"""Training runs on disk: one at a time, each with its state, so that clients and the next start see where it is."""

import json
import logging
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Final, Literal

from lib.corrections.history import time_after
from lib.errors import StorageError, TrainingError
from lib.fields import from_fields
from lib.files import read_json_or, storage_errors, write_json
from lib.locks import file_lock, is_locked

logger = logging.getLogger(__name__)

RUN_FILE, PROGRESS_FILE, LOCK_FILE = "run.json", "progress.json", ".training"
LOCK_WAIT_S: Final = 0.5
"""How long a held lock is tried for, seconds: whoever only looks (``is_running``) holds it for an instant."""
PROGRESS_EVERY_S: Final = 1.0
"""Progress is written at most this often, seconds: clients ask every few seconds."""

Status = Literal["running", "stopped", "failed", "interrupted", "published", "kept", "refused"]
"""The last three are for good: in use; passed, but not compared with what is in use by now; failed the gate."""
RESUMABLE: Final = ("running", "stopped", "failed", "interrupted")
"""A run in one of these states goes on where it was; "running" without its lock was killed."""


@dataclass(frozen=True)
class RunState:
    """Where a run is, as clients are told.

    Attributes:
        run: Its id.
        status: See ``Status``.
        step: Step in training; 0 before and after.
        epoch: Reports done, of all steps.
        total_epochs: Reports of the whole run.
        seconds: Time the present process has spent on the run.
        best_metric: Best mean pseudo Dice of the step in training, later of the last one; None before its first report.
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
    """Hold the training lock; a killed holder leaves none behind.

    Yields:
        The lock's open file; a child process that inherits it holds the lock too.

    Raises:
        TrainingError: Another process trains for this site.
        StorageError: The folder cannot be written.
    """
    with file_lock(training_dir / LOCK_FILE, LOCK_WAIT_S) as stream:
        if stream is None:
            raise TrainingError("A training is already running here. Wait for it to finish, or stop it.")
        yield stream


def is_running(training_dir: Path) -> bool:
    """Whether a process trains for this site."""
    return is_locked(training_dir / LOCK_FILE)


def begin(training_dir: Path, key: str, about: Mapping[str, Any], *, resume: bool) -> Path:
    """The folder of the run to work on: the newest one if it is unfinished and about the same, else a new one.

    Args:
        training_dir: Where runs lie. The caller holds the lock.
        key: What the run is about.
        about: Kept in the run's record.
        resume: Whether an unfinished run may go on.

    Raises:
        StorageError: It cannot be written.
    """
    newest = newest_run(training_dir)
    if resume and newest is not None:
        # What is missing or damaged is simply not continued.
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
    """The run that was begun last, or None."""
    if not training_dir.is_dir():
        return None
    return max((p for p in training_dir.iterdir() if (p / RUN_FILE).is_file()), default=None)


def state_of(training_dir: Path) -> RunState | None:
    """The state of the newest run, for clients; a killed one shows as interrupted. None when there is none."""
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

    def write(self, state: RunState, *, now: bool = False) -> None:
        """Store a state; ``now`` whatever the time since the last one.

        Raises:
            StorageError: It cannot be written.
        """
        if now or time.monotonic() - self._written >= PROGRESS_EVERY_S:
            write_json(self._path, asdict(state))
            self._written = time.monotonic()

    def write_last(self, state: RunState) -> None:
        """Store the state a run ends in; on a full disk in place of the one before, which takes no new room.

        Killed within, half a state may be left: the run then shows as interrupted.
        """
        try:
            write_json(self._path, asdict(state))
        except StorageError:
            try:
                with self._path.open("r+", encoding="utf-8") as stream:
                    stream.write(json.dumps(asdict(state)))
                    stream.truncate()
            except OSError:
                logger.warning("the state of run %s could not be written: %s", state.run, state.message)
