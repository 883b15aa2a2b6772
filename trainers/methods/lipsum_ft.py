"""Lipsum-FT: keep the scores of images against random texts as the zero-shot model has them.

Nam, Heo and Lee, "Lipsum-FT: Robust Fine-Tuning of Zero-Shot Models Using Random Text Guidance",
ICLR 2024 (arXiv 2404.00860). With s the pre-trained logit scale, f and f0 the L2-normalised image
features of one view under the current and the zero-shot parameters, and t_1 .. t_M the
L2-normalised features of M random texts that are drawn afresh at every step::

    reg  = mean over the batch of  sum_m (s <f, t_m> - s <f0, t_m>)^2 / (2 M)
    loss = cross_entropy(s f @ head.T, labels) + reg_weight * reg

The scale stands inside the square: with CLIP's s = 100, leaving it out would weaken the term ten
thousand times. Since ``reg = s^2 / 2 * (f - f0)' C (f - f0)`` with ``C = sum_m t_m t_m' / M``, the
random texts matter through their second moment alone, whose effective rank is reported. That asks
for controls, `text_source`::

    random          the method itself: M fresh texts a step
    fixed           M texts, the same at every step
    second_moment   the expected C, estimated once from 16,384 random texts: no texts in the loop
    isotropic       C = I / D, as if texts pointed everywhere: the distillation of features
    file            M texts a step of the user's, from `texts_file`
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from trainers.errors import ConfigError
from trainers.methods.base import (
    Batch,
    Loss,
    Method,
    Schedule,
    Step,
    cross_entropy,
    scheduled,
    zero,
)
from trainers.methods.registry import register_method
from trainers.models import TextFacts
from trainers.models.zero_shot import ZeroShotModel
from trainers.seeding import generator
from trainers.texts.random_texts import random_text_features, random_text_moment
from trainers.texts.text_file import digest, read_texts

TEXTS_OF_MOMENT = 16_384
"""Random texts that the expected second moment is estimated from."""


@register_method("lipsum_ft")
class LipsumFineTuning(Method):
    """Lipsum-FT with the defaults of the authors' code. With `reg_weight = 0` it is FT."""

    name: Literal["lipsum_ft"] = "lipsum_ft"
    reg_weight: float = Field(default=1.0, ge=0)
    """Weight of the regulariser."""
    reg_schedule: Schedule = "constant"
    """Or falling from `reg_weight` to 0 over the run, linearly or as a cosine."""
    text_source: Literal["random", "fixed", "second_moment", "isotropic", "file"] = "random"
    """Which texts; all but the first are controls of ours."""
    text_length: int = Field(default=8, ge=1)
    """L: random tokens a text, besides the start and end tokens."""
    text_count: int = Field(default=80, ge=1)
    """M: texts a step."""
    texts_file: str | None = None
    """Of `text_source: file`, else of no effect: UTF-8, a text a line; every worker must be able
    to read it."""
    texts_sha256: str | None = None
    """Of that file, filled in where it is left out: with other texts a run cannot go on, though
    all that is known of it can still be read."""

    @field_validator("texts_file")
    @classmethod
    def _path_is_absolute(cls, path: str | None) -> str | None:
        return None if path is None else str(Path(path).expanduser().absolute())

    @model_validator(mode="after")
    def _texts_are_known(self) -> LipsumFineTuning:
        """The file is read where its hash is missing alone: `check_files` compares the two."""
        needed = self.text_source == "file"
        if needed and self.texts_file is None:
            raise ValueError("text_source = 'file' takes the texts of texts_file, which is missing")
        if self.texts_file is not None and self.texts_sha256 is None:
            try:  # another source may be searched together with the file
                found = digest(Path(self.texts_file))
            except ConfigError:
                if needed:
                    raise
            else:
                object.__setattr__(self, "texts_sha256", found)  # pydantic has no public way
        return self

    @property
    def needs_zero_shot(self) -> bool:
        """The regulariser compares with the zero-shot model, unless its weight is 0."""
        return self.reg_weight > 0

    def check(self, text: TextFacts) -> None:
        """Raise a `ConfigError` where there are no random texts, or they exceed the context."""
        if self.text_source in ("isotropic", "file"):
            return
        if not text.has_random_texts:
            raise ConfigError(
                f"method.name = {self.name!r}, model.name = {text.model!r}: random texts are made "
                "of the start and end tokens of CLIP's tokenizer, and this model has another; "
                "write method.name = 'ft', or name a model with CLIP's tokenizer"
            )
        check_text_length(self.text_length, text.context_length)

    def check_files(self) -> None:
        """Raise a `ConfigError` where the texts are not those that the configuration means."""
        if self.text_source != "file" or self.texts_file is None:
            return
        found = digest(Path(self.texts_file))
        if self.texts_sha256 != found:
            raise ConfigError(
                f"method.texts_file = {self.texts_file!r} has changed since: its SHA-256 was "
                f"{self.texts_sha256} and is {found}"
            )

    @property
    def idle(self) -> frozenset[str]:
        """The length and number of texts, where the source has none of that."""
        without = {
            "second_moment": {"text_count"},
            "isotropic": {"text_length", "text_count"},
            "file": {"text_length"},
        }
        return frozenset(without.get(self.text_source, ()))

    def loss(self, batch: Batch, step: Step) -> Loss:
        """Cross-entropy plus the energy gap to the zero-shot model on this step's texts."""
        task = cross_entropy(batch)
        if batch.zero_shot is None:
            return Loss(task, zero(task))
        before, now = batch.zero_shot.features, batch.student.features
        scale = step.zero_shot.logit_scale
        if self.text_source in ("second_moment", "isotropic"):
            reg = quadratic_gap(now, before, self._moment(step), scale)
        else:
            reg = energy_gap(now, before, self._text_features(step), scale)
        return Loss(task, reg, scheduled(self.reg_weight, self.reg_schedule, step))

    def _text_features(self, step: Step) -> Tensor:
        """(M, D) of this step."""
        if self.text_source == "file":
            every = _features_of_file(step.zero_shot, str(self.texts_file))
            drawn = generator(step.seed, "texts of a file", step.number).permutation(len(every))
            return every[torch.from_numpy(drawn[: self.text_count]).to(every.device)]
        if self.text_source == "fixed":
            return _fixed_features(step.zero_shot, self.text_count, self.text_length, step.seed)
        return random_text_features(
            step.zero_shot, self.text_count, self.text_length, seed=step.seed, step=step.number
        )

    def _moment(self, step: Step) -> Tensor:
        """(D, D)."""
        if self.text_source == "isotropic":
            width = step.zero_shot.head.shape[1]
            return torch.eye(width, device=step.zero_shot.device) / width
        return random_text_moment(
            step.zero_shot, self.text_length, count=TEXTS_OF_MOMENT, seed=step.seed
        )


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


def quadratic_gap(
    features: Tensor, zero_shot_features: Tensor, moment: Tensor, logit_scale: float
) -> Tensor:
    """The same for texts of the second moment C (D, D): ``s^2 / 2 (f - f0)' C (f - f0)``, mean."""
    change = logit_scale * (features - zero_shot_features)  # (B, D)
    return ((change @ moment) * change).sum(dim=-1).mean() / 2


# What does not change from step to step is computed once a process, for its last model.


@lru_cache(maxsize=1)
def _fixed_features(zero_shot: ZeroShotModel, count: int, length: int, seed: int) -> Tensor:
    return random_text_features(zero_shot, count, length, seed=seed, step=0)


@lru_cache(maxsize=1)
def _features_of_file(zero_shot: ZeroShotModel, path: str) -> Tensor:
    texts = read_texts(Path(path))
    parts = [texts[start : start + 1024] for start in range(0, len(texts), 1024)]
    return torch.cat(
        [zero_shot.encode_tokens(zero_shot.tokenize(part).to(zero_shot.device)) for part in parts]
    )
