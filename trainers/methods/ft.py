"""Plain fine-tuning (FT): cross-entropy and nothing else."""

from __future__ import annotations

from typing import Literal

from trainers.methods.base import Batch, Loss, Method, Step, cross_entropy
from trainers.methods.registry import register_method


class PlainFineTuning(Method):
    """Base of the methods whose loss is cross-entropy alone."""

    def loss(self, batch: Batch, step: Step) -> Loss:
        """Cross-entropy."""
        return Loss(cross_entropy(batch))


@register_method("ft")
class FineTuning(PlainFineTuning):
    """FT, the baseline of every robust method: ``cross_entropy(logits, labels)``."""

    name: Literal["ft"] = "ft"
