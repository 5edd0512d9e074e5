"""Read, compute and write at the same time: one scan is in the network while the next is read and resampled and the
last is named and written."""

import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from totalspineseg_server.cohort import cohort_messages
from totalspineseg_server.errors import TotalSpineSegError

logger = logging.getLogger(__name__)

AHEAD: Final = 2
"""Largest number of scans read ahead of the network, and of results waiting to be written; more would only fill
memory."""

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Found = TypeVar("Found")
Written = TypeVar("Written")


@dataclass(frozen=True)
class Done(Generic[Item, Written]):
    """One finished item.

    Attributes:
        item: The item.
        written: Return value of ``write``; None if a stage failed.
        failure: Why it failed, in one sentence; None if it did not.
    """

    item: Item
    written: Written | None
    failure: str | None


def overlapped(
    items: Sequence[Item],
    read: Callable[[Item], Loaded],
    compute: Callable[[Item, Loaded], Found],
    write: Callable[[Item, Found], Written],
    *,
    workers: int,
) -> Generator[Done[Item, Written], None, None]:
    """Pass every item through three stages; ``compute`` runs in this thread, one item at a time, in order.

    If the iterator is closed early (or interrupted), writes that have begun are finished, and the rest is dropped.

    Args:
        items: Items to process.
        read: First stage, in threads.
        compute: Second stage.
        write: Third stage, in threads.
        workers: Threads for reading and as many for writing.

    Yields:
        One ``Done`` for each item as it finishes; an exception of a stage ends only its item.
    """
    readers, writers = ThreadPoolExecutor(workers, "read"), ThreadPoolExecutor(workers, "write")
    reading: deque[tuple[Item, Future[Loaded]]] = deque()
    writing: deque[tuple[Item, Future[Written]]] = deque()
    waiting = iter(items)
    try:
        while True:
            while len(reading) < AHEAD and (item := next(waiting, None)) is not None:
                reading.append((item, readers.submit(read, item)))
            if not reading:
                break
            item, loading = reading.popleft()
            try:
                found = compute(item, loading.result())
            except Exception as error:  # One bad scan must not stop the rest.
                yield Done(item, None, sentence(error))
            else:
                writing.append((item, writers.submit(write, item, found)))
                del found
            while writing and (writing[0][1].done() or len(writing) > workers + AHEAD):
                yield _finished(*writing.popleft())
        while writing:
            yield _finished(*writing.popleft())
    finally:
        readers.shutdown(wait=True, cancel_futures=True)
        writers.shutdown(wait=True, cancel_futures=True)


def _finished(item: Item, future: "Future[Written]") -> Done[Item, Written]:
    try:
        return Done(item, future.result(), None)
    except Exception as error:  # One bad scan must not stop the rest.
        return Done(item, None, sentence(error))


def sentence(error: Exception) -> str:
    """Return a failure as a sentence for the summary; the traceback of an unexpected error goes to the log."""
    if isinstance(error, TotalSpineSegError):
        return str(error)
    logger.debug("unexpected error", exc_info=error)
    if isinstance(error, MemoryError):
        return cohort_messages.NO_MEMORY
    text = " ".join(str(error).split())[:300]
    return (
        f"Unexpected error ({type(error).__name__}): {text}" if text else f"Unexpected error ({type(error).__name__})"
    )
