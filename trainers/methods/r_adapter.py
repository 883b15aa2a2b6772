"""R-Adapter: train linear adapters in frozen encoders, average them, and keep a share of them.

Kim et al., "Efficient and Versatile Robust Fine-Tuning of Zero-shot Models", ECCV 2024 (arXiv
2408.05749). The adapters are those of `trainers.models.adapters`, ``h(x) = x + g A x`` after
attention and MLP in every block of both encoders, A = 0 and g = 0.1 before the first step. A and g
are trained; the encoders, their projections and the logit scale s are not. Three measures make it
robust:

- dropping: at each step an adapter is scaled by 0 with probability p = `drop_rate`, else by
  1 / (1 - p);
- accumulation: ``average <- d average + (1 - d) weights`` is evaluated, d = `ema_decay`;
- rescaling: the average is used as ``h(x) = x + alpha g A x``, merged into the encoders.

The loss is contrastive, with all texts of an image's class as positives (MPM-NCE). With F and T the
L2-normalised features of B images and their texts, M_ij = 1 if i and j are of the same class, else
0, and P_i the number of positives of i::

    S~_ij = s (F T')_ij + s * margin * (1 - M_ij)
    Y_ij  = (1 - eps) M_ij / P_i + eps (1 - M_ij) / (B - P_i)
    loss  = mean over i of  -sum_j Y_ij (log softmax_j S~_ij + log softmax_j S~'_ij) / 2

The defaults, eps = `label_smoothing` included, are those of the authors' code on ImageNet; s is
that of the model (for OpenAI's models, the authors' temperature of 0.01). They are meant for 25,000
steps: after n steps the average keeps ``ema_decay^n`` of its start, A = 0, so a run of a few
hundred steps needs a smaller decay. Here an adapter is dropped for a whole step; in the authors'
code it is dropped for single positions, and the paper's formula allows both. The authors' results
have not been reproduced here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from trainers.methods.base import Batch, Loss, Step, StepRandom, Weights
from trainers.methods.flyp import ContrastiveMethod, similarities
from trainers.methods.registry import register_method

if TYPE_CHECKING:
    from trainers.models.config import ModelConfig
    from trainers.models.student import Student


@register_method("r_adapter")
class ResidualAdapter(ContrastiveMethod):
    """R-Adapter with the defaults of the authors' code on ImageNet."""

    name: Literal["r_adapter"] = "r_adapter"
    has_line: ClassVar[bool] = False
    drop_rate: float = Field(default=0.2, ge=0, lt=1)
    """p: probability that a step drops an adapter."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """d of the average that is evaluated."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Share of the adapters that is kept: 0 is the zero-shot model."""
    margin: float = Field(default=0.05, ge=0, le=1000)
    """Added to the cosines of images with texts of other classes."""
    label_smoothing: float = Field(default=0.02, ge=0, lt=1)
    """eps: the share of the label that the texts of other classes have together."""

    def prepare(self, student: Student) -> None:
        from trainers.models.adapters import add_adapters

        add_adapters(student.visual)
        add_adapters(student.add_text_encoder())

    @contextmanager
    def during_step(self, student: Student, draw: StepRandom) -> Iterator[None]:
        from trainers.models.adapters import Adapter

        adapters = [part for part in student.modules() if isinstance(part, Adapter)]
        kept = draw.generator("adapters").random(len(adapters)) >= self.drop_rate
        for adapter, is_kept in zip(adapters, kept, strict=True):
            adapter.scale.fill_(is_kept / (1 - self.drop_rate))
        try:
            yield
        finally:
            for adapter in adapters:
                adapter.scale.fill_(1)

    def check(self, model: ModelConfig) -> None:
        from trainers.models.adapters import add_adapters
        from trainers.models.clip import skeleton
        from trainers.models.student import TextTower

        clip: Any = skeleton(model)
        for encoder in (clip.visual, TextTower(clip)):
            add_adapters(encoder)

    def loss(self, batch: Batch, step: Step) -> Loss:
        import torch
        from torch.nn.functional import cross_entropy

        scores, labels = similarities(batch.student), batch.labels
        same = labels[:, None] == labels
        positives = same.sum(dim=1, keepdim=True).to(scores)
        negatives = len(labels) - positives
        eps = self.label_smoothing * (negatives > 0).to(scores)
        targets = torch.where(same, (1 - eps) / positives, eps / negatives.clamp(min=1))
        harder = torch.where(same, scores, scores + self.margin * batch.student.logit_scale)
        return Loss((cross_entropy(harder, targets) + cross_entropy(harder.T, targets)) / 2)

    def eval_weights(
        self, trained: Weights, initial: Weights, id_gradient: Callable[[Weights], Weights]
    ) -> Weights:
        """The average, with the maps A times `alpha`; the gains g stay, as the product counts."""
        return {n: self.alpha * v if n.endswith(".map") else v for n, v in trained.items()}
