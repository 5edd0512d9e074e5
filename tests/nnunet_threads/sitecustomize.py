"""Python runs this at its start if this folder is on its path; nnU-Net's pools are then threads of its process.

nnU-Net starts six pools to plan, train and validate; each process of them imports PyTorch and nnU-Net for five seconds.
"""

from multiprocessing.context import SpawnContext
from multiprocessing.pool import ThreadPool


def _threads(context: SpawnContext, processes: int | None = None) -> ThreadPool:
    return ThreadPool(processes)


SpawnContext.Pool = _threads  # type: ignore[assignment,method-assign]
