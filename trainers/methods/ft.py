"""Plain fine-tuning (FT): cross-entropy and nothing else."""

from __future__ import annotations

from typing import Literal

from trainers.methods.base import Method
from trainers.methods.registry import register_method


@register_method("ft")
class FineTuning(Method):
    """FT, the baseline of every robust method: ``cross_entropy(logits, labels)``."""

    name: Literal["ft"] = "ft"
