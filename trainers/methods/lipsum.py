"""Lipsum-FT: keep the scores of images against random texts as the zero-shot model has them.

Nam, Heo and Lee, "Lipsum-FT: Robust Fine-Tuning of Zero-Shot Models Using Random Text Guidance",
ICLR 2024 (arXiv 2404.00860). With s the pre-trained logit scale, f and f0 the L2-normalised image
features of one view under the current and the zero-shot parameters, and t_1 .. t_M the
L2-normalised features of M random texts that are drawn afresh at every step::

    reg  = mean over the batch of  sum_m (s <f, t_m> - s <f0, t_m>)^2 / (2 M)
    loss = cross_entropy(s f @ head.T, labels) + reg_weight * reg

The scale stands inside the square: with CLIP's s = 100, leaving it out would weaken the term ten
thousand times. Since ``reg = s^2 / 2 * (f - f0)' C (f - f0)`` with ``C = sum_m t_m t_m' / M``, the
random texts matter through their second moment alone, whose effective rank is reported.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from trainers.errors import ConfigError
from trainers.methods.base import Batch, Loss, Method
from trainers.models import TextFacts
from trainers.random_texts import random_text_features
from trainers.zero_shot import ZeroShotModel


class LipsumFineTuning(Method):
    """Lipsum-FT with the defaults of the authors' code."""

    name: Literal["lipsum_ft"] = "lipsum_ft"
    reg_weight: float = Field(default=1.0, ge=0)
    """Weight of the regulariser."""
    text_length: int = Field(default=8, ge=1)
    """L: random tokens a text, besides the start and end tokens."""
    text_count: int = Field(default=80, ge=1)
    """M: random texts a step."""

    @property
    def needs_zero_shot_features(self) -> bool:
        """The regulariser compares with the zero-shot model, unless its weight is 0."""
        return self.reg_weight > 0

    def check(self, text: TextFacts) -> None:
        """Raise a `ConfigError` where there are no random texts, or they exceed the context."""
        if not text.has_random_texts:
            raise ConfigError(
                f"method.name = {self.name!r}, model.name = {text.model!r}: random texts are made "
                "of the start and end tokens of CLIP's tokenizer, and this model has another; "
                "write method.name = 'ft', or name a model with CLIP's tokenizer"
            )
        check_text_length(self.text_length, text.context_length)

    def loss(self, batch: Batch, zero_shot: ZeroShotModel, *, seed: int, step: int) -> Loss:
        """Cross-entropy plus the energy gap to the zero-shot model on this step's random texts."""
        task = functional.cross_entropy(batch.logits, batch.labels)
        if batch.zero_shot_features is None:
            return Loss(task=task, reg=task.new_zeros(()), reg_weight=self.reg_weight)
        text_features = random_text_features(
            zero_shot, self.text_count, self.text_length, seed=seed, step=step
        )
        reg = energy_gap(
            batch.features, batch.zero_shot_features, text_features, zero_shot.logit_scale
        )
        return Loss(task=task, reg=reg, reg_weight=self.reg_weight)


def check_text_length(text_length: int, context_length: int) -> None:
    """Raise a `ConfigError` where L tokens with their start and end exceed the context."""
    if text_length + 2 > context_length:
        raise ConfigError(
            f"method.text_length = {text_length}: with its start and end tokens a text has "
            f"{text_length + 2}, and the model's context holds {context_length} "
            f"(at most {context_length - 2})"
        )


def energy_gap(
    features: Tensor, zero_shot_features: Tensor, text_features: Tensor, logit_scale: float
) -> Tensor:
    """Half the mean squared change of the scaled image-text scores, a scalar.

    Args:
        features: (B, D), L2-normalised.
        zero_shot_features: (B, D), L2-normalised, of the same views.
        text_features: (M, D), L2-normalised.
        logit_scale: s, the exponential of CLIP's pre-trained `logit_scale` parameter.
    """
    change = logit_scale * (features - zero_shot_features) @ text_features.T  # (B, M)
    return change.square().mean() / 2
