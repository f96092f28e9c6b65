"""Several processes on one training, started by torchrun: each takes its rows of every batch, gradients are summed.

Everything about processes is here. Batches do not depend on their number (`bertkin.objectives.make`), so a run on
four processes sees what a run on one would.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Who we are among the processes of this training."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files and talks to people."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def sum_gradients(self, model: nn.Module) -> None:
        """Add up every parameter's gradient over the processes, in float32, in one message; one that got none in any of
        them has none afterwards."""
        if self.size == 1:
            return
        parameters = [p for p in model.parameters() if p.requires_grad]
        mine = [(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in parameters]
        got = torch.tensor([float(p.grad is not None) for p in parameters], device=mine[0].device)
        flat = torch.cat([*mine, got])
        dist.all_reduce(flat)
        *parts, got = flat.split([*(p.numel() for p in parameters), len(parameters)])
        for p, part, had in zip(parameters, parts, got.tolist(), strict=True):
            p.grad = part.view_as(p).to(p.dtype) if had else None

    def sum(self, numbers: list[float]) -> list[float]:
        """Each number summed over the processes."""
        if self.size == 1:
            return numbers
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        tensor: Tensor = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        return [float(x) for x in tensor]

    def agree(self, number: float) -> float:
        """The first process's number, for all: clocks differ, and a decision must not."""
        return self.sum([number if self.first else 0.0])[0]

    def lead(self, work: Callable[[], T]) -> T | None:
        """Let the first process do something while the others wait, and get None. If it fails there, all stop.

        Raises:
            SystemExit: in the others, silently: the first one says what is wrong.
        """
        if self.size == 1:
            return work()
        if not self.first:
            if code := int(self.sum([0.0])[0]):
                raise SystemExit(code)
            return None
        try:
            done = work()
        except BaseException as error:
            self.sum([float(getattr(error, "exit_code", 1))])
            raise
        self.sum([0.0])
        return done


def join(device: str) -> World:
    """The world as torchrun set it up, or a world of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        # The others wait while the first prepares the corpus; torchrun ends them if it dies.
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(days=2))
        # Not after each training: processes that part and meet again find each other's old addresses.
        atexit.register(dist.destroy_process_group)
    return World(dist.get_rank(), size, local, int(os.environ.get("LOCAL_WORLD_SIZE", str(size))))
