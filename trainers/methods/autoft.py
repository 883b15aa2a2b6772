"""AutoFT: a weighted sum of losses, whose weights a search chooses by validation data.

Choi, Lee et al., "AutoFT: Robust Fine-Tuning by Optimizing Hyperparameters on OOD Data", 2024
(arXiv 2401.10220). With z = s H f the logits of an image of class y, p = softmax z, and n trained
parameters theta, which start as theta0::

    loss = cross-entropy
         + w1 * hinge          sum_{j != y} max(0, 1 - z_y + z_j)
         + w2 * contrastive    FLYP's, of the images and the zero-shot texts of their classes
         + w3 * entropy        -sum_k p_k log p_k
         + w4 * mistakes       the entropy of images whose largest logit is not that of y
         + w5 * |theta|_1 / n             + w6 * |theta|_2^2 / n
         + w7 * |theta - theta0|_1 / n    + w8 * |theta - theta0|_2^2 / n

The terms and the range of their weights, 1e-4 to 10, are those of the authors' code
(cchoi1/auto-ft). There the text encoder trains as in FLYP, on captions drawn from the templates,
and n counts it and s, too; cross-entropy has a weight unless it comes first. Here the text encoder
is frozen, and the weight is 1, since Adam's steps do not change with the scale of the sum. Their
search trains many times for a few steps and looks at a small validation set of another
distribution; here it is that of this project, with an objective such as `ood_val/mean_acc`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field

from trainers.methods.base import Batch, Loss, Method, Step, cross_entropy
from trainers.methods.flyp import contrastive_loss
from trainers.methods.registry import register_method

if TYPE_CHECKING:
    from torch import Tensor

Weight: TypeAlias = Annotated[float, Field(ge=0, le=1e6)]


@register_method("autoft")
class AutoFineTuning(Method):
    """AutoFT's loss. With all weights 0 it is FT."""

    name: Literal["autoft"] = "autoft"
    hinge_weight: Weight = 0.01
    """w1."""
    contrastive_weight: Weight = 0.01
    """w2."""
    entropy_weight: Weight = 0.01
    """w3."""
    mistakes_weight: Weight = 0.01
    """w4."""
    l1_norm_weight: Weight = 0.01
    """w5."""
    l2_norm_weight: Weight = 0.01
    """w6."""
    l1_distance_weight: Weight = 0.01
    """w7."""
    l2_distance_weight: Weight = 0.01
    """w8."""

    @property
    def per_image(self) -> bool:
        return self.contrastive_weight == 0

    @property
    def weighs_classes(self) -> bool:
        return True

    def loss(self, batch: Batch, step: Step) -> Loss:
        from torch.nn import functional

        labels, student = batch.labels, batch.student
        log_p = student.logits.log_softmax(dim=-1)
        entropy = -(log_p.exp() * log_p).sum(dim=-1)
        is_mistake = (log_p.argmax(dim=-1) != labels).to(entropy)
        reg = (entropy * (self.entropy_weight + self.mistakes_weight * is_mistake)).mean()
        if self.hinge_weight:
            hinge = functional.multi_margin_loss(student.logits, labels)  # the mean over classes
            reg = reg + self.hinge_weight * student.logits.shape[-1] * hinge
        if self.contrastive_weight:
            texts = step.zero_shot.head[labels].to(student.features)
            scores = student.logit_scale * student.features @ texts.T
            reg = reg + self.contrastive_weight * contrastive_loss(scores)
        return Loss(cross_entropy(batch), reg)

    def add_penalty(
        self,
        gradients: list[Tensor],
        weights: list[Tensor],
        initial: list[Tensor],
    ) -> tuple[Tensor, float] | None:
        import torch

        number = sum(weight.numel() for weight in weights)
        moved = list(torch._foreach_sub(weights, initial))
        l1, l2 = self.l1_norm_weight / number, self.l2_norm_weight / number
        of_norms = _add_norms(gradients, weights, l1, l2)
        l1, l2 = self.l1_distance_weight / number, self.l2_distance_weight / number
        of_distances = _add_norms(gradients, moved, l1, l2)
        return of_norms + of_distances, 1.0


def _add_norms(gradients: list[Tensor], tensors: list[Tensor], l1: float, l2: float) -> Tensor:
    """Add the gradient of ``l1 |x|_1 + l2 |x|_2^2`` by tensors x; its value, a scalar."""
    import torch

    torch._foreach_add_(gradients, torch._foreach_sign(tensors), alpha=l1)
    torch._foreach_add_(gradients, tensors, alpha=2 * l2)
    of_l1 = torch.stack(torch._foreach_norm(tensors, 1))
    of_l2 = torch.stack(torch._foreach_norm(tensors)).square()
    return (l1 * of_l1 + l2 * of_l2).sum()
