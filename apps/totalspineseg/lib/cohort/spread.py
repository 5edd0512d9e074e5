"""The work on many processes or machines, through Dask."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from distributed import Client, Future, KilledWorker, as_completed
from distributed.comm import CommClosedError

from lib.cohort.carried import make_plugin, make_task
from lib.cohort.inputs import Case
from lib.cohort.overlap import Done
from lib.cohort.run import Stream
from lib.cohort.station import FAILURE, RECORD, REFUSAL
from lib.cohort.work import Record
from lib.errors import ClusterError


class DaskExecutor:
    """Spreads scans over the workers of a cluster; each keeps its networks warm.

    Args:
        job: From ``station.job_json``.
        connect: Opens the cluster for the time of the run.
        ours: The workers are processes of this machine that end with the run.
        tell: Told when the run waits for its first worker, as it does while jobs are in a queue.
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
        """Do the scans; see ``Executor``."""
        name = f"totalspineseg-{uuid.uuid4().hex}"
        with self._connect() as client:
            if not client.scheduler_info()["workers"]:
                self._tell("waiting for the first worker")
            try:
                client.register_plugin(make_plugin(name, self._job, ignore_interrupts=self._ours))
            except Exception as error:  # whatever a worker raised while it opened its station
                raise ClusterError(
                    f"workers that see the app under the same path are required, got {type(error).__name__}: {error}"
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
                    # Ends the scans that workers have in hand, and drops their networks.
                    client.unregister_worker_plugin(name)


def _done(case: Case, future: Future) -> Done[Case, Record]:
    """What became of a scan.

    Raises:
        ClusterError: No scan can be done.
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
            f"workers are required that live until the scan is done, got {error.allowed_failures + 1} lost on the way; "
            "give them more memory and time",
        )
    if error is None:
        raise ClusterError(
            "a lasting connection to the Dask scheduler is required, got none; the same command continues"
        )
    return Done(case, None, f"unexpected {type(error).__name__}: {error}")
