"""SPD: selective projection decay, a weight decay towards the initial weights where it is due.

Tian et al., "Rethinking Weight Decay for Robust Fine-Tuning of Foundation Models", NeurIPS 2024
(arXiv 2411.01713). The loss is cross-entropy. After AdamW has moved a tensor of the weights from
theta to theta~, with the gradient g, if the loss falls towards the initial weights theta0,

    <g, theta - theta0>  >  0,

the tensor goes back by the share r of the distance that the step has added::

    theta <- theta~ - strength * r * (theta~ - theta0)
    r      = max(0, |theta~ - theta0| - |theta - theta0|) / |theta~ - theta0|

Strength 1 ends at the distance before the step. The update is that of the authors' AdamSPD
(GT-RIPL/Selective-Projection-Decay), in which `weight_decay` is the strength and no other decay is
applied. The head, which starts as the zero-shot head, is a tensor as any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainers.methods.base import Method, Weights, sums
from trainers.methods.registry import register_method

if TYPE_CHECKING:
    from torch import nn


@register_method("spd")
class SelectiveProjectionDecay(Method):
    """SPD. With `strength = 0` it is FT."""

    name: Literal["spd"] = "spd"
    strength: float = Field(default=1, ge=0, le=1e6)
    """lambda: 1 takes all of the added distance back."""

    @contextmanager
    def updating(self, weights: Mapping[str, nn.Parameter], initial: Weights) -> Iterator[None]:
        """Project what the update has moved away from the initial weights against the gradient."""
        import torch

        moving = [(p, p.grad, initial[name]) for name, p in weights.items() if p.grad is not None]
        parameters, gradients, starts = (list(tensors) for tensors in zip(*moving, strict=True))
        with torch.no_grad():
            before = torch._foreach_sub(parameters, starts)
            length = torch.stack(torch._foreach_norm(before))
            product = sums(torch._foreach_mul(before, gradients))
        del before
        yield
        with torch.no_grad():
            moved = torch._foreach_sub(parameters, starts)
            distance = torch.stack(torch._foreach_norm(moved))
            added = (1 - length / distance.clamp(min=1e-30)).clamp(min=0)
            back = self.strength * added * (product > 0)
            torch._foreach_sub_(parameters, torch._foreach_mul(moved, back.unbind()))
