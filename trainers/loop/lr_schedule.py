"""The learning-rate schedule of a fine-tuning."""

from __future__ import annotations

import math

from trainers.config import OptimConfig


def learning_rate(step: int, steps: int, optim: OptimConfig, peak: float | None = None) -> float:
    """Linear warm-up to the peak, by default `optim.lr`, then a cosine to 0; `step` is from 0."""
    warmup, peak = round(optim.warmup_fraction * steps), optim.lr if peak is None else peak
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
