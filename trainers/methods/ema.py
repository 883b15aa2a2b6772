"""EMA: plain fine-tuning that keeps the exponential moving average of the weights.

It is `ft` with `eval.ema`, which every method can have. After every step ``average <- d average +
(1 - d) weights``, starting at the zero-shot weights. The average is evaluated, saved and exported.
A baseline of Lipsum-FT's paper, which does not state the decay; 0.999 is usual. (Polyak and
Juditsky, 1992, average all weights uniformly.) A run much shorter than ``1 / (1 - d)`` steps ends
near the zero-shot model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainers.methods.base import Method
from trainers.methods.registry import register_method


@register_method("ema")
class AveragedFineTuning(Method):
    """EMA. With `ema_decay = 0` it is FT."""

    name: Literal["ema"] = "ema"
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """d: share of the average that is kept at each step."""
