"""The interface of a fine-tuning method: a task term and a regulariser of one batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from trainers.models import ModelConfig, TextFacts, text_facts
from trainers.zero_shot import ZeroShotModel


@dataclass(frozen=True)
class Batch:
    """What a method sees of one worker's share of a step; B pictures, D features, K classes."""

    labels: Tensor
    """(B,) int64."""
    features: Tensor
    """(B, D) float32: L2-normalised image features under the current parameters."""
    logits: Tensor
    """(B, K) float32: ``logit_scale * features @ head.T``."""
    zero_shot_features: Tensor | None
    """(B, D) float32: of the same views under the zero-shot parameters, where asked for."""


@dataclass(frozen=True)
class Loss:
    """The terms of a loss, each a scalar."""

    task: Tensor
    reg: Tensor
    reg_weight: float

    @property
    def total(self) -> Tensor:
        """What is minimised: ``task + reg_weight * reg``."""
        return self.task + self.reg_weight * self.reg


class Method(BaseModel, ABC):
    """A method is its own configuration: frozen, and named by its `name` field."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    def needs_zero_shot_features(self) -> bool:
        """Whether `loss` reads `Batch.zero_shot_features`."""
        return False

    def check(self, text: TextFacts) -> None:
        """Raise a `ConfigError` where this method cannot work with a model of such texts."""
        return None

    @abstractmethod
    def loss(self, batch: Batch, zero_shot: ZeroShotModel, *, seed: int, step: int) -> Loss:
        """The loss of one batch.

        Whatever is random depends on (seed, step) alone, so that all workers agree on it.
        """


def check_method_fits(method: Method, model: ModelConfig) -> None:
    """Raise a `ConfigError` where the method cannot work with the model; no weights are loaded."""
    method.check(text_facts(model))


def zero(like: Tensor) -> Tensor:
    """The regulariser of a method that has none."""
    return torch.zeros((), dtype=like.dtype, device=like.device)
