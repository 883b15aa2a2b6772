"""Several workers on one model, which each of them has whole (DistributedDataParallel).

Without a process group, in a notebook for example, all functions return their input unchanged.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def world() -> tuple[int, int]:
    """This worker's rank, and the number of workers."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def replicated(student: nn.Module, device: torch.device) -> nn.Module:
    """The student in DDP; the student itself if there is one worker."""
    if world()[1] == 1:
        return student
    device_ids = [device] if device.type == "cuda" else None
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # argument's name
        return DistributedDataParallel(
            student,
            device_ids=device_ids,
            broadcast_buffers=False,  # they are the same on all workers
            gradient_as_bucket_view=True,
        )


def gather(rows: Tensor) -> Tensor:
    """All workers' rows, (B, ...) to (W B, ...), differentiable.

    For a loss that every worker computes from the gathered rows, and whose gradients are averaged
    over workers: each of the W equal losses depends on a worker's own rows, so their gradient is W
    times that of the worker's own loss, and the backward pass needs no communication.
    """
    return _Gather.apply(rows) if world()[1] > 1 else rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rank, world_size = world()
        ctx.own = slice(rank * len(rows), (rank + 1) * len(rows))
        parts = [torch.empty_like(rows) for _ in range(world_size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return world()[1] * gradients[0][ctx.own]


def averaged(tensor: Tensor) -> Tensor:
    """The mean over the workers."""
    if world()[1] == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / world()[1]
