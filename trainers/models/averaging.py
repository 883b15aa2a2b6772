"""Arithmetic on sets of weights: interpolation, moving averages, temporary replacement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@torch.no_grad()
def interpolate(
    initial: Mapping[str, Tensor], weights: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """``(1 - alpha) initial + alpha weights``, tensor by tensor; exact at 0 and at 1.

    WiSE-FT (Wortsman et al., CVPR 2022, arXiv 2109.01903) with the zero-shot model's weights as
    `initial`: over every weight, the head included.
    """
    return {name: torch.lerp(initial[name], value, alpha) for name, value in weights.items()}


@torch.no_grad()
def update_average(
    average: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float
) -> None:
    """``average <- decay average + (1 - decay) weights``, in place."""
    if decay == 1:
        return
    now = [weights[name].detach() for name in average]
    torch._foreach_lerp_(list(average.values()), now, 1 - decay)


@contextmanager
def swapped_in(
    parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]
) -> Iterator[None]:
    """Within the block, the parameters have these values."""
    own: dict[str, Tensor] = {}
    try:
        for name, value in weights.items():
            own[name] = parameters[name].data
            parameters[name].data = value.detach()
        yield
    finally:
        for name, value in own.items():
            parameters[name].data = value
