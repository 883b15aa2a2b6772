"""Several workers on one model: replicated (DDP) or sharded (FSDP2), and their communication.

Without a process group, in a notebook for example, all functions return their input unchanged.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from trainers.models.activations import blocks
from trainers.models.student import Student
from trainers.models.zero_shot import ZeroShotModel


def world() -> tuple[int, int]:
    """This worker's rank, and the number of workers."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def replicated(student: Student, device: torch.device) -> nn.Module:
    """The student in DDP; the student itself if there is one worker."""
    if world()[1] == 1:
        return student
    device_ids = [device] if device.type == "cuda" else None
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # argument's name
        # Buffers are the same on all workers. Broadcasting them would make a worker wait for one
        # whose forward pass ran out of memory.
        return DistributedDataParallel(student, device_ids=device_ids, broadcast_buffers=False)


def shard(student: Student, zero_shot: ZeroShotModel) -> None:
    """Shard the parameters of student and teacher over all workers, block by block.

    A block's weights are gathered when they are needed and freed afterwards (Zhao et al., "PyTorch
    FSDP", VLDB 2023; `fully_shard` of PyTorch). The text encoder of the teacher stays whole.
    """
    mesh = init_device_mesh(student.head.device.type, (world()[1],))
    if student.text is not None:  # FSDP2 shards no scalars
        clip = cast(Any, student.text.clip)
        clip.logit_scale = nn.Parameter(clip.logit_scale.detach().reshape(1))
    encoders = [student.visual, student.text, zero_shot.visual]
    parts = [block for encoder in encoders if encoder is not None for block in blocks(encoder)]
    # The root is resharded after its forward pass, too: its parameters are read between steps.
    for part in (*parts, student, zero_shot.visual):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered on every worker (a collective operation); others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_sharded(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every worker has whole, in the shape of `like` and sharded like it.

    A sharded tensor is returned as it is; if `like` is whole, the result is whole, too.
    """
    if not isinstance(like, DTensor):
        return tensor.reshape(like.shape)
    if isinstance(tensor, DTensor):
        return tensor
    here = tensor.to(like.device).reshape(like.shape)
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)


def gather(rows: Tensor) -> Tensor:
    """All workers' rows, (B, ...) to (W B, ...), differentiable.

    For a loss that every worker computes from the gathered rows, and whose gradients are averaged
    over workers: each of the W equal losses depends on a worker's own rows, so their gradient is W
    times that of the worker's own loss, and the backward pass needs no communication.
    """
    gathered: Tensor = _Gather.apply(rows) if world()[1] > 1 else rows
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rank, world_size = world()
        ctx.own = slice(rank * len(rows), (rank + 1) * len(rows))
        parts = [torch.empty_like(rows) for _ in range(world_size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Any) -> Any:
        (gradient,) = gradients
        own: slice = ctx.own  # type: ignore[attr-defined]
        return world()[1] * gradient[own]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over workers, after backward passes under DDP's `no_sync`."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad /= world()[1]
            dist.all_reduce(parameter.grad)


def averaged(tensor: Tensor) -> Tensor:
    """The mean over the workers."""
    if world()[1] == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / world()[1]


def any_worker(flag: bool, device: torch.device) -> bool:
    """Whether the flag is true on any worker."""
    if world()[1] == 1:
        return flag
    raised = torch.tensor(float(flag), device=device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return bool(raised)
