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

from typing import TYPE_CHECKING, Literal

from trainers.methods.base import Step, ZeroShotRegulariser, kl_divergence
from trainers.methods.registry import register_method

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.models.student import Outputs


@register_method("car_ft")
class ContextAwareFineTuning(ZeroShotRegulariser):
    """CAR-FT. With `reg_weight = 0` it is FT."""

    name: Literal["car_ft"] = "car_ft"

    def regulariser(self, student: Outputs, zero_shot: Outputs, step: Step) -> Tensor:
        contexts, scale = step.zero_shot.contexts, step.zero_shot.logit_scale
        before, now = (scale * of.features @ contexts.T for of in (zero_shot, student))
        return kl_divergence(before, now)
