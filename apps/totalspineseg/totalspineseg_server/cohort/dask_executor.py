"""Process scans in many processes or on many machines, through Dask."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from distributed import Client, Future, KilledWorker, as_completed
from distributed.comm import CommClosedError

from totalspineseg_server.cohort import cohort_messages
from totalspineseg_server.cohort.dask_payload import make_plugin, make_task
from totalspineseg_server.cohort.inputs import Case
from totalspineseg_server.cohort.overlap import Done
from totalspineseg_server.cohort.running import Stream
from totalspineseg_server.cohort.work import Record
from totalspineseg_server.cohort.worker import FAILURE, RECORD, REFUSAL
from totalspineseg_server.errors import ClusterError


class DaskExecutor:
    """Distributes scans over the workers of a cluster; each keeps its networks loaded.

    Args:
        job: From ``worker.job_json``.
        connect: Opens the cluster for the time of the run.
        ours: Whether the workers are processes on this machine that end with the run.
        tell: Called with a sentence when the run waits for its first worker, for example while jobs are in a queue.
    """

    def __init__(
        self,
        job: Mapping[str, Any],
        connect: Callable[[], AbstractContextManager[Client]],
        *,
        ours: bool,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._job, self._connect, self._ours, self._tell = job, connect, ours, tell

    def __call__(self, cases: Sequence[Case]) -> Stream:
        """Process the scans; see ``Executor``."""
        name = f"totalspineseg-{uuid.uuid4().hex}"
        with self._connect() as client:
            if not client.scheduler_info()["workers"]:
                self._tell("waiting for the first worker")
            try:
                client.register_plugin(make_plugin(name, self._job, ignore_interrupts=self._ours))
            except Exception as error:  # A worker may raise any error while it makes its ``ScanWorker``.
                raise ClusterError(
                    cohort_messages.WORKERS_FAILED.format(kind=type(error).__name__, error=error)
                ) from error
            names = [f"{name}-{k}" for k in range(len(cases))]
            futures = client.map(make_task(name), [case.as_json() for case in cases], key=names, pure=False)
            waiting = dict(zip(futures, cases, strict=True))
            del futures
            try:
                for future in as_completed(list(waiting)):
                    yield _done(waiting.pop(future), future)
            finally:
                with suppress(CommClosedError, OSError, TimeoutError):
                    client.cancel(list(waiting), force=True)
                    # End the scans that workers have in progress, and drop their networks.
                    client.unregister_worker_plugin(name)


def _done(case: Case, future: Future) -> Done[Case, Record]:
    """Return the result of a scan.

    Raises:
        ClusterError: No scan can be processed.
    """
    if future.status == "finished":
        answer: dict[str, Any] = future.result()
        if REFUSAL in answer:
            raise ClusterError(answer[REFUSAL])
        return Done(case, answer.get(RECORD), answer.get(FAILURE))
    error = future.exception() if future.status == "error" else None
    if isinstance(error, KilledWorker):
        return Done(
            case,
            None,
            cohort_messages.WORKERS_LOST.format(count=error.allowed_failures + 1),
        )
    if error is None:
        raise ClusterError(cohort_messages.SCHEDULER_LOST)
    return Done(case, None, f"Unexpected error ({type(error).__name__}): {error}")
