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

from typing import TYPE_CHECKING, Literal

from trainers.methods.base import Step, ZeroShotRegulariser, kl_divergence
from trainers.methods.registry import register_method

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.models.student import Outputs


@register_method("kd")
class Distillation(ZeroShotRegulariser):
    """KD. With `reg_weight = 0` it is FT."""

    name: Literal["kd"] = "kd"

    def regulariser(self, student: Outputs, zero_shot: Outputs, step: Step) -> Tensor:
        return kl_divergence(zero_shot.logits, student.logits)
