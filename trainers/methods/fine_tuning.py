"""Plain fine-tuning (FT): cross-entropy and nothing else."""

from __future__ import annotations

from typing import Literal

from torch.nn import functional

from trainers.methods.base import Batch, Loss, Method, zero
from trainers.zero_shot import ZeroShotModel


class FineTuning(Method):
    """FT, the baseline of every robust method: ``cross_entropy(logits, labels)``."""

    name: Literal["ft"] = "ft"

    def loss(self, batch: Batch, zero_shot: ZeroShotModel, *, seed: int, step: int) -> Loss:
        """Cross-entropy; its regulariser is 0."""
        task = functional.cross_entropy(batch.logits, batch.labels)
        return Loss(task=task, reg=zero(task), reg_weight=0.0)
