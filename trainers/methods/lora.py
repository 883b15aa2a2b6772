"""LoRA: train low-rank changes of the image encoder's matrices, and the head.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022 (arXiv 2106.09685). Every
matrix W (m, n) in the blocks of the image encoder, those of queries, keys and values apart, becomes

    W + alpha / r * U V,    U (m, r) = 0 and V (r, n) uniform in +-1 / sqrt(n) before the first step

and the loss is cross-entropy. The authors change the matrices of attention alone; with those of the
MLPs it comes closer to full fine-tuning. The merged weights are evaluated, kept and exported, and
the line of `eval.line` is theirs: on it, V keeps its value and U starts at 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainers.methods.base import Method
from trainers.methods.registry import register_method

if TYPE_CHECKING:
    from trainers.models.config import ModelConfig
    from trainers.models.student import Student


@register_method("lora")
class LowRankFineTuning(Method):
    """LoRA of the image encoder."""

    line_keeps: ClassVar[tuple[str, ...]] = (".down",)
    name: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1, le=10_000)
    """r."""
    alpha: float = Field(default=8, gt=0, le=1e6)
    """The change is multiplied by alpha / r."""

    def prepare(self, student: Student) -> None:
        from trainers.models.low_rank import add_low_rank

        student.train_head()
        add_low_rank(student.visual, self.rank, self.alpha / self.rank)

    def check(self, model: ModelConfig) -> None:
        from trainers.models.clip import skeleton
        from trainers.models.low_rank import add_low_rank

        add_low_rank(skeleton(model).get_submodule("visual"), 1, 1.0)
