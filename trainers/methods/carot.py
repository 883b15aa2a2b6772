"""CaRot: contrastive loss, near-orthogonal projections, and distillation from a moving average.

Oh et al., "Towards Calibrated Robust Fine-Tuning of Vision-Language Models", NeurIPS 2024 (arXiv
2311.01723). With S = s F T' the scaled cosines of B images and their texts, S~ those of a
moving average of the weights for the same views and texts, and Wv, Wt the linear projections from
the encoders' widths to the D features, (width, D)::

    loss = contrastive loss of S (FLYP's)
         + orthogonality_weight * ||Wv' Wv - I||_F  +  cross_weight * ||Wv Wt'||_F
         + distillation_weight * (H(softmax S~, softmax S) + H(softmax S~', softmax S'))

H(p, q) is the mean over the rows of -sum p log q. The norms are neither squared nor divided by a
size, and the two directions of H are added, not averaged.

All terms, and the default weights 0.2, 0.05 and 1.5, are those of the authors' code; the term with
Wt is in its command for ImageNet. There the average is updated after every 500th of about 25,000
steps, counted from 0, with a momentum that rises from 0.05 to 0.9 in the first fifth of the run, so
the teacher is almost the student at first and slows down. Here a run of any length has the same
number of updates (`teacher_updates`): without updates the average would be the zero-shot model. As
in their code, the first step does not distil, S uses the trained logit scale and S~ its average,
and the student is evaluated. The authors' results, of 10 epochs on ImageNet, have not been
reproduced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainers.errors import ConfigError
from trainers.methods.base import Batch, Loss, Step, Weights
from trainers.methods.flyp import ContrastiveMethod, contrastive_loss, similarities
from trainers.methods.registry import register_method

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.models.config import ModelConfig

MOMENTUM = (0.05, 0.9)
"""Momentum of the average at the first step, and after its rise."""
RISE = 0.2
"""Share of the run in which the momentum rises, linearly."""

IMAGE_PROJECTIONS = (
    "visual.proj",
    "visual.attnpool.c_proj.weight",
    "visual.head.proj.weight",
    "visual.trunk.head.weight",
    "visual.trunk.head.fc.weight",
)
"""Names of Wv in CLIP's transformers, in its ResNets, and in timm's encoders (added on top, or the
encoder's own last layer)."""
TEXT_PROJECTIONS = (
    "text.clip.text_projection",
    "text.clip.text.text_projection",
    "text.clip.text.text_projection.weight",
    "text.clip.text.proj.weight",
)
"""Names of Wt in CLIP, in separate text towers (SigLIP's with a bias), and in Hugging Face's."""


@register_method("carot")
class CaRot(ContrastiveMethod):
    """CaRot with the defaults of the authors' code."""

    name: Literal["carot"] = "carot"
    orthogonality_weight: float = Field(default=0.2, ge=0, le=1e6)
    """Weight of ``||Wv' Wv - I||_F``."""
    cross_weight: float = Field(default=0.05, ge=0, le=1e6)
    """Weight of ``||Wv Wt'||_F``."""
    distillation_weight: float = Field(default=1.5, ge=0, le=1e6)
    """Weight of the cross-entropies with the average."""
    teacher_updates: int = Field(default=50, ge=1, le=10**9)
    """Updates of the average in a run, evenly spread; at most one a step."""

    def check(self, model: ModelConfig) -> None:
        from trainers.models.clip import skeleton

        if self.orthogonality_weight or self.cross_weight:
            projections(
                {
                    name if name.startswith("visual.") else f"text.clip.{name}": parameter
                    for name, parameter in skeleton(model).named_parameters()
                }
            )

    def average_decay(self, step: int, steps: int) -> float | None:
        """The momentum after a step that updates the average; 1 (no update) after others."""
        if self.distillation_weight == 0:
            return None
        if step * self.teacher_updates % steps >= self.teacher_updates:
            return 1.0
        first, last = MOMENTUM
        return first + (last - first) * min(1.0, step / (RISE * steps))

    def loss(self, batch: Batch, step: Step) -> Loss:
        import torch
        from torch.nn.functional import cross_entropy

        scores = similarities(batch.student)
        task = contrastive_loss(scores)
        reg = task.new_zeros(())
        if self.orthogonality_weight or self.cross_weight:
            image, text = projections(step.weights)
            identity = torch.eye(image.shape[1], dtype=image.dtype, device=image.device)
            norm = torch.linalg.matrix_norm
            reg = reg + self.orthogonality_weight * norm(image.T @ image - identity)
            reg = reg + self.cross_weight * norm(image @ text.T)
        if batch.average is not None and step.number > 0:
            teacher = similarities(batch.average)
            by_rows = cross_entropy(scores, teacher.softmax(dim=-1))
            by_columns = cross_entropy(scores.T, teacher.T.softmax(dim=-1))
            reg = reg + self.distillation_weight * (by_rows + by_columns)
        return Loss(task, reg)


def projections(weights: Weights) -> tuple[Tensor, Tensor]:
    """Wv (image width, D) and Wt (text width, D) among the trained parameters."""
    found = []
    for encoder, names in (("image", IMAGE_PROJECTIONS), ("text", TEXT_PROJECTIONS)):
        name = next((name for name in names if name in weights), None)
        if name is None:
            problem = f"the {encoder} encoder of this model has no linear projection to regularise"
            hint = "set method.orthogonality_weight and method.cross_weight to 0"
            raise ConfigError(problem, key="method.name", value="carot", hint=hint)
        found.append(weights[name].T if name.endswith(".weight") else weights[name])
    return found[0], found[1]
