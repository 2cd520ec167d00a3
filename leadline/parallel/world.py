"""The processes of a run: who this one is, and the few words they exchange.

`torchrun -m leadline train ...` starts them and says in the environment who is who. A run of one process is a world of
one, in which every word is its own answer: nothing is imported, nothing is sent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from leadline.errors import ConfigError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class World:
    """`rank` of `size` processes; every process must say the same words in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """The one that writes and tells."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes, the same bits in each."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        return flag if self.size == 1 else bool(self.total(torch.tensor(float(flag))))

    def gather(self, value: T) -> list[T]:
        """What each process has, by rank."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def deal(self, count: int) -> list[tuple[int, bool]]:
        """This process's share of `count` passes, as (place, counts): as many for each, so that all meet in every
        exchange; where nothing is left to deal the last pass is made once more and does not count."""
        places = range(self.rank, -(-count // self.size) * self.size, self.size)
        return [(min(place, count - 1), place < count) for place in places]


@contextlib.contextmanager
def processes(device: str = "cpu") -> Iterator[World]:
    """The world that the environment describes, connected: gloo between CPUs, NCCL between GPUs."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise ConfigError(f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}")
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
