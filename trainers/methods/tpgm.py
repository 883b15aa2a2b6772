"""TPGM: plain fine-tuning, then a learned limit on the distance that each weight has moved.

Tian et al., "Trainable Projected Gradient Method for Robust Fine-tuning", CVPR 2023 (arXiv
2303.10720). With ``d_k = theta_k - theta0_k`` for every tensor of the weights and a radius each::

    theta_k' = theta0_k + r_k d_k,    r_k = min(radius_k / ||d_k||_2, 1)

The radii minimise the cross-entropy of theta' on ID validation images, with theta fixed, by Adam
starting at half of the distance. As in the authors' code for CLIP, they are learned after
fine-tuning, here again for every evaluation; 200 steps of 64 images at 0.01 are the authors'
values. Here ``r_k`` itself is learned, a share of the distance: the authors' learning rate is in
units of the distance, and a value for long fine-tunings exceeds the whole range of a short one. The
authors' results have not been reproduced.

The radii depend on the labels of the ID validation split, so ID validation metrics of this method
are optimistic; compare it on the OOD domains and on the test splits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainers.methods.base import Method, Weights, sums
from trainers.methods.registry import register_method

if TYPE_CHECKING:
    from torch import Tensor


@register_method("tpgm")
class ProjectedFineTuning(Method):
    """TPGM. With `projection_steps = 0` it is FT."""

    name: Literal["tpgm"] = "tpgm"
    projection_steps: int = Field(default=200, ge=0, le=10**9)
    """Steps of Adam on the radii, at every evaluation, each on 64 images."""
    projection_lr: float = Field(default=1e-2, gt=0, le=1000)
    """Learning rate of these steps, in shares of the distance that a weight has moved."""

    def eval_weights(
        self, trained: Weights, initial: Weights, id_gradient: Callable[[Weights], Weights]
    ) -> Weights:
        if self.projection_steps == 0:
            return trained
        import torch

        from trainers.distributed import averaged

        names = list(trained)
        starts = [initial[name] for name in names]
        change = torch._foreach_sub([trained[name] for name in names], starts)

        def at(shares: Tensor) -> dict[str, Tensor]:
            moved = torch._foreach_mul(change, shares.unbind())
            return dict(zip(names, torch._foreach_add(moved, starts), strict=True))

        shares = torch.full((len(change),), 0.5, device=change[0].device)
        optimizer = torch.optim.Adam([shares], lr=self.projection_lr)
        for _ in range(self.projection_steps):
            gradient = id_gradient(at(shares))
            products = torch._foreach_mul([gradient[name] for name in names], change)
            shares.grad = averaged(sums(products).to(shares))
            optimizer.step()
            shares.clamp_(0, 1)
        return at(shares)
