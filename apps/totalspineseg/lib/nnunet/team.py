"""The processes that train together: whose share of a batch is whose, and how they agree and add up."""

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist

PATIENCE: Final = timedelta(minutes=30)
"""How long one process waits for another: reports and stored states fit in. A dead one is noticed at once."""


class Team:
    """One process of a training and its place among the others; alone, nothing is sent.

    All processes must make the same calls in the same order.

    Args:
        rank: Which one, from 0.
        size: How many there are.

    Attributes:
        rank: As given.
        size: As given.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def leads(self) -> bool:
        """Whether this process logs, validates and stores."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """The patches of a batch of ``count`` that this process takes; at least one if there are as many."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def any(self, flag: bool) -> bool:
        """Whether some process says yes."""
        return self.total(float(flag)) > 0

    def all_have(self, value: int) -> bool:
        """Whether all processes have the value of the first one."""
        given = torch.tensor([value])
        if self.size > 1:
            dist.broadcast(given, src=0)
        return not self.any(int(given) != value)

    def total(self, value: float) -> float:
        """The sum over all processes; the same bits everywhere."""
        if self.size == 1:
            return value
        both = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(both)
        return float(both)

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors, the same ones in each process, by their sums over all processes, in place."""
        if self.size > 1:
            for pending in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                pending.wait()


ALONE: Final = Team()


def join(store: Path, rank: int, size: int, device: torch.device) -> Team:
    """Meet the other processes of this machine; returns when all are there.

    Args:
        store: File through which they meet; not there yet when the first comes, removed afterwards by the caller.
        rank: This process, from 0.
        size: How many there will be.
        device: Where this process computes. Gradients on GPUs go through NCCL, everything else through gloo.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    meeting = dist.FileStore(str(store), size)
    dist.init_process_group(backend, store=meeting, rank=rank, world_size=size, timeout=PATIENCE)
    return Team(rank, size)
