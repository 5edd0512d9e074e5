"""Make nnU-Net's pools threads of its process; Python runs this at its start if this folder is on its path.

nnU-Net starts six pools to plan, train and validate; each process of them imports PyTorch and nnU-Net for five seconds.
Under `make coverage` a pool may wait forever for the end of its processes: it sends them SIGTERM, which coverage
handles, and the handler does not run in a process that got the signal just before it began to wait for work.
"""

import multiprocessing
from multiprocessing.context import BaseContext
from multiprocessing.pool import ThreadPool


def _threads(context: BaseContext, processes: int | None = None) -> ThreadPool:
    return ThreadPool(processes)


BaseContext.Pool = _threads  # type: ignore[assignment,method-assign]
multiprocessing.Pool = ThreadPool  # type: ignore[assignment]
