"""CAR-FT: fine-tuning that keeps the zero-shot model's view of an image's context.

Mao, Chen, Jia, Zhang, Xue and Li, "Context-Aware Robust Fine-Tuning", IJCV 2024 (arXiv 2211.16175).
A template such as "a sketch of a {}." describes the context in which a class is shown; its text
feature w_c, averaged over all classes, represents the context alone. With f and f0 the features of
a view under the current and the zero-shot parameters and s the pre-trained logit scale::

    q  = softmax over contexts of  s <f, w_c>,    q0 likewise from f0
    reg = mean over the batch of  KL(q0 || q)

The contexts come from the prompt templates, 80 by default, and the zero-shot text encoder, and are
normalised as in the code of Lipsum-FT's authors. The code of CAR-FT's authors was not found: the
direction of the divergence and the weight 1 come from that of others.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainers.methods.base import Batch, Loss, Method, Step, cross_entropy, kl_divergence, zero
from trainers.methods.registry import register_method


@register_method("car_ft")
class ContextAwareFineTuning(Method):
    """CAR-FT. With `reg_weight = 0` it is FT."""

    name: Literal["car_ft"] = "car_ft"
    reg_weight: float = Field(default=1.0, ge=0, le=1e6)
    """Weight of the regulariser."""

    @property
    def needs_zero_shot(self) -> bool:
        """Whether the regulariser has a weight."""
        return self.reg_weight > 0

    def loss(self, batch: Batch, step: Step) -> Loss:
        """Cross-entropy plus the divergence from the zero-shot model's contexts."""
        task = cross_entropy(batch)
        if batch.zero_shot is None:
            return Loss(task, zero(task))
        contexts, scale = step.zero_shot.contexts, step.zero_shot.logit_scale
        before, now = (
            scale * encoded.features @ contexts.T for encoded in (batch.zero_shot, batch.student)
        )
        return Loss(task, kl_divergence(before, now), self.reg_weight)
