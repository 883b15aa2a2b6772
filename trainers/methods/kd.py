"""KD: fine-tuning that keeps the zero-shot model's class probabilities.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531),
with the zero-shot model as the teacher, like the old model in Li and Hoiem's "Learning without
Forgetting" (ECCV 2016). With p0 and p the class probabilities of a view under the zero-shot model,
its own head included, and under the student, both with the pre-trained logit scale::

    reg = mean over the batch of  KL(p0 || p)

at temperature 1. Lipsum-FT's authors list this baseline without weight and temperature; the weight
1 was chosen here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainers.methods.base import Batch, Loss, Method, Step, cross_entropy, kl_divergence, zero
from trainers.methods.registry import register_method


@register_method("kd")
class Distillation(Method):
    """KD. With `reg_weight = 0` it is FT."""

    name: Literal["kd"] = "kd"
    reg_weight: float = Field(default=1.0, ge=0, le=1e6)
    """Weight of the regulariser."""

    @property
    def needs_zero_shot(self) -> bool:
        """Whether the regulariser has a weight."""
        return self.reg_weight > 0

    def loss(self, batch: Batch, step: Step) -> Loss:
        """Cross-entropy plus the divergence from the zero-shot model's probabilities."""
        task = cross_entropy(batch)
        if batch.zero_shot is None:
            return Loss(task, zero(task))
        reg = kl_divergence(batch.zero_shot.logits, batch.student.logits)
        return Loss(task, reg, self.reg_weight)
