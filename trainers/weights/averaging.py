"""Arithmetic on sets of weights: interpolation, moving averages, temporary replacement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@torch.no_grad()
def interpolate(
    initial: Mapping[str, Tensor], weights: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """``(1 - alpha) initial + alpha weights``, tensor by tensor; exact at 0 and at 1.

    WiSE-FT (Wortsman et al., CVPR 2022, arXiv 2109.01903) with the zero-shot model's weights as
    `initial`: over every weight, the head included.
    """
    if alpha == 1:
        return dict(weights)
    return {name: torch.lerp(initial[name], value, alpha) for name, value in weights.items()}


@torch.no_grad()
def update_average(
    average: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float
) -> None:
    """``average <- decay average + (1 - decay) weights``, in place."""
    if decay == 1:
        return
    for name, value in average.items():
        value.lerp_(weights[name].detach(), 1 - decay)


@contextmanager
def swapped_in(
    parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]
) -> Iterator[None]:
    """Within the block, the parameters have these values."""
    own: dict[str, Tensor] = {}
    try:
        for name, value in weights.items():
            parameter = parameters[name]
            if isinstance(parameter, DTensor):  # FSDP gathers from the storage itself
                storage = parameter.to_local().data_ptr()
                if isinstance(value, DTensor) and value.to_local().data_ptr() == storage:
                    continue
                own[name] = parameter.detach().clone()
                parameter.detach().copy_(value)
            else:
                own[name] = parameter.data
                parameter.data = value.detach()
        yield
    finally:
        for name, value in own.items():
            parameter = parameters[name]
            if isinstance(parameter, DTensor):
                parameter.detach().copy_(value)
            else:
                parameter.data = value
