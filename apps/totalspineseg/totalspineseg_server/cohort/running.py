"""Process every unfinished scan of a folder, here or on many machines, show the progress, and summarize."""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TextIO

from totalspineseg_server.cohort.inputs import Case
from totalspineseg_server.cohort.overlap import Done, overlapped
from totalspineseg_server.cohort.work import Networks, Record, Work

BAR_WIDTH: Final = 24
Stream = Generator[Done[Case, Record], None, None]
"""Scans as they finish, in any order. If it is closed, writes that have begun are finished, and the rest is dropped."""


class Progress:
    """Shows how many of ``total`` items are done: in one line on a terminal, elsewhere in a line for each item.

    Args:
        total: Number of items.
        stream: Stream to write to, such as stderr; None to show nothing.
    """

    def __init__(self, total: int, stream: TextIO | None) -> None:
        self._total, self._stream = total, stream
        self._start = time.monotonic()
        self._done = self._skipped = 0
        self._terminal = stream is not None and stream.isatty()

    def advance(self, name: str, failure: str | None = None) -> None:
        """Count one more item."""
        self._done += 1
        if self._stream is None:
            return
        state = f"failed: {failure}" if failure else "done"
        counts = f"{self._done}/{self._total}"
        if not self._terminal:
            self._stream.write(f"[{counts}, {self._left()} left] {name}: {state}\n")
        else:
            self._clear()
            if failure:
                self._stream.write(f"{name}: {state}\n")
            filled = BAR_WIDTH * self._done // max(self._total, 1)
            bar = "#" * filled + "-" * (BAR_WIDTH - filled)
            self._stream.write(f"[{bar}] {counts}  {self._left()} left  {name[:40]}")
        self._stream.flush()

    def skip(self, name: str) -> None:
        """Count an item that was finished before; the estimate of the time left ignores it."""
        self._done += 1
        self._skipped += 1
        if self._stream is not None and not self._terminal:
            self._stream.write(f"[{self._done}/{self._total}] {name}: finished before\n")

    def close(self) -> None:
        """Remove the bar; call this before anything else is written."""
        if self._stream is not None and self._terminal:
            self._clear()
            self._stream.flush()

    def _clear(self) -> None:
        if self._stream is not None:
            self._stream.write("\r\x1b[2K")

    def _left(self) -> str:
        done = max(self._done - self._skipped, 1)
        seconds = (time.monotonic() - self._start) / done * (self._total - self._done)
        return clock_text(seconds)


def clock_text(seconds: float) -> str:
    """Return seconds as "0:42" or "1:02:30"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Executor(Protocol):
    """Processes scans, on this machine or on others."""

    def __call__(self, cases: Sequence[Case]) -> Stream:
        """Process the scans.

        Raises:
            TotalSpineSegError: No scan can be processed, because there are no usable weights or no machines.
        """


@dataclass(frozen=True)
class Summary:
    """Results of a run.

    Attributes:
        records: Name -> record of every finished scan of this run's inputs, skipped ones included.
        skipped: Names that were finished before.
        failures: Name -> sentence.
        seconds: Wall time.
        interrupted: Whether the user stopped the run.
        damaged: Name -> sentence about a record of an earlier run that could not be read.
    """

    records: dict[str, Record] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    interrupted: bool = False
    damaged: dict[str, str] = field(default_factory=dict)


def run(
    work: Work, cases: Sequence[Case], executor: Executor, *, overwrite: bool = False, progress: Progress | None = None
) -> Summary:
    """Process the scans that are not finished yet.

    Args:
        work: Work for each scan.
        cases: From ``find_cases`` and ``pair_localizers``.
        executor: Processes the scans; it is not called if everything is finished.
        overwrite: Whether to process finished scans again.
        progress: Counts every scan.

    Returns:
        The results; if the run is interrupted (Ctrl-C), those that are done.

    Raises:
        StorageError: The output folder cannot be written, or a scan or localizer is a file that the run would replace.
        TotalSpineSegError: From the executor.
    """
    start = time.monotonic()
    progress = progress or Progress(len(cases), None)
    damaged = {case.name: sentence for case in cases if (sentence := work.damaged_record(case))}
    known = {} if overwrite else {c.name: r for c in cases if (r := work.finished(c)) is not None}
    records = dict(known)
    failures = {} if overwrite else {c.name: s for c in cases if c.name not in known and (s := work.of_another(c))}
    todo = [case for case in cases if case.name not in known and case.name not in failures]
    work.require_apart(todo)
    work.make_room()
    for name in known:
        progress.skip(name)
    for name, failure in failures.items():
        progress.advance(name, failure)
    interrupted = bool(todo) and _collect(executor(todo), records, failures, progress)
    if interrupted:
        # Writes that had begun are finished by now.
        records |= {c.name: r for c in todo if c.name not in records and (r := work.finished(c)) is not None}
    return Summary(records, tuple(known), failures, time.monotonic() - start, interrupted, damaged)


def _collect(stream: Stream, records: dict[str, Record], failures: dict[str, str], progress: Progress) -> bool:
    """Record every scan as it finishes; return whether the user interrupted the run."""
    try:
        for done in stream:
            if done.written is None:
                failures[done.item.name] = done.failure or "unknown"
            else:
                records[done.item.name] = done.written
            progress.advance(done.item.name, done.failure)
    except KeyboardInterrupt:
        stream.close()
        return True
    return False


class LocalExecutor:
    """Processes the scans in this process.

    Args:
        work: Work for each scan.
        networks: Makes the networks; called once, and only if there is work.
        workers: Threads for reading and as many for writing.
    """

    def __init__(self, work: Work, networks: Callable[[], Networks], *, workers: int) -> None:
        self._work, self._networks, self._workers = work, networks, workers

    def __call__(self, cases: Sequence[Case]) -> Stream:
        """Process the scans; see ``Executor``."""
        networks, work = self._networks(), self._work
        return overlapped(
            cases,
            work.read,
            lambda case, loaded: work.compute(case, loaded, networks),
            work.write,
            workers=self._workers,
        )
