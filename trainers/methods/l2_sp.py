"""L2-SP: fine-tuning with a penalty on the squared distance from the initial weights.

Li, Grandvalet and Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional
Networks", ICML 2018 (arXiv 1802.01483)::

    reg = sum_k ||theta_k - theta0_k||^2

over all trained parameters, the head included: it starts as the zero-shot head. The sum has no
factor 1/2. The weight 0.01 is that of Kumar et al.'s code (ICLR 2022). The penalty goes through
AdamW's moments like any other gradient. The value that Lipsum-FT's authors used is not known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainers.methods.base import Method
from trainers.methods.registry import register_method

if TYPE_CHECKING:
    from torch import Tensor


@register_method("l2_sp")
class L2SP(Method):
    """L2-SP. With `reg_weight = 0` it is FT."""

    name: Literal["l2_sp"] = "l2_sp"
    reg_weight: float = Field(default=0.01, ge=0, le=1e6)
    """Weight of the regulariser."""

    def add_penalty(
        self,
        gradients: list[Tensor],
        weights: list[Tensor],
        initial: list[Tensor],
    ) -> tuple[Tensor, float] | None:
        import torch

        if self.reg_weight == 0:
            return None
        moved = torch._foreach_sub(weights, initial)
        torch._foreach_add_(gradients, moved, alpha=2 * self.reg_weight)
        reg = torch.stack(torch._foreach_norm(moved)).square().sum()
        return reg, self.reg_weight
