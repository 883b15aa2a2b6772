"""Lipsum-FT: keep the zero-shot model's scores of images against random texts.

Nam, Heo and Lee, "Lipsum-FT: Robust Fine-Tuning of Zero-Shot Models Using Random Text Guidance",
ICLR 2024 (arXiv 2404.00860). With s the pre-trained logit scale, f and f0 the L2-normalised image
features of one view under the current and the zero-shot parameters, and t_1 .. t_M the
L2-normalised features of M random texts, drawn again at every step::

    reg  = mean over the batch of  sum_m (s <f, t_m> - s <f0, t_m>)^2 / (2 M)
    loss = cross_entropy(s f @ head.T, labels) + reg_weight * reg

The scale is inside the square: with CLIP's s = 100, the term would be 10,000 times weaker without
it. Since ``reg = s^2 / 2 * (f - f0)' C (f - f0)`` with ``C = sum_m t_m t_m' / M``, the random texts
act only through their second moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainers.errors import ConfigError
from trainers.methods.base import Schedule, Step, ZeroShotRegulariser, scheduled
from trainers.methods.registry import register_method

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.models.config import ModelConfig
    from trainers.models.student import Outputs


@register_method("lipsum_ft")
class LipsumFineTuning(ZeroShotRegulariser):
    """Lipsum-FT with the defaults of the authors' code. With `reg_weight = 0` it is FT."""

    name: Literal["lipsum_ft"] = "lipsum_ft"
    reg_schedule: Schedule = "constant"
    """Constant, or falling from `reg_weight` to 0 over the run, linearly or as a cosine."""
    text_length: int = Field(default=8, ge=1, le=100_000)
    """L: random tokens of a text, besides those that the tokenizer adds."""
    text_count: int = Field(default=80, ge=1, le=100_000)
    """M: texts a step."""

    def check(self, model: ModelConfig) -> None:
        from trainers.models.clip import vocabulary

        of_model = vocabulary(model)
        if self.text_length > of_model.longest:
            problem = "too long for the model's context with its start and end tokens"
            hint = f"at most {of_model.longest}"
            key = "method.text_length"
            raise ConfigError(problem, key=key, value=self.text_length, hint=hint)
        of_model.frame(self.text_length)

    def weight_at(self, step: Step) -> float:
        return scheduled(self.reg_weight, self.reg_schedule, step)

    def regulariser(self, student: Outputs, zero_shot: Outputs, step: Step) -> Tensor:
        shared = step.zero_shot_features
        texts = shared.of_random_texts(self.text_count, self.text_length, step.number)
        change = student.features - zero_shot.features
        gaps = step.zero_shot.logit_scale * change @ texts.T  # (B, M)
        return gaps.square().mean() / 2
