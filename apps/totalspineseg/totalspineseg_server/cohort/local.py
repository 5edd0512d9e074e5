"""Process scans on this machine: one scan in the network while others are read and written."""

from collections.abc import Callable, Sequence

from totalspineseg_server.cohort.inputs import Case
from totalspineseg_server.cohort.overlap import overlapped
from totalspineseg_server.cohort.running import Stream
from totalspineseg_server.cohort.work import Networks, Work


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
