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


def first_learning_rate(parameters: int, steps: int) -> float:
    """A peak learning rate of AdamW for a model without published settings, to two digits.

    ``1e-5 sqrt(86.2e6 / parameters) sqrt(5000 / steps)``: that of Lipsum-FT's authors for the image
    encoder of CLIP ViT-B/16 in 5000 steps, transferred to another model and length. At equal depth,
    the root of the number of parameters is proportional to the width of a network, and AdamW's best
    learning rate to its inverse (Yang et al., "Tensor Programs V", arXiv 2203.03466). An Adam step
    moves each weight by about the learning rate, so that ``1 / sqrt(steps)`` is the rate of the
    bounds for stochastic gradient methods, and that with which independent steps move a weight as
    far in any number of steps.

    Args:
        parameters: of the image encoder, those that train.
    """
    return float(f"{1e-5 * math.sqrt(86.2e6 / parameters * 5000 / steps):.1e}")
