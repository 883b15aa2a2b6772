"""WiSE-FT: plain fine-tuning, then a point between the zero-shot weights and the fine-tuned ones.

Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022 (arXiv 2109.01903)::

    theta = (1 - alpha) theta_zero_shot + alpha theta_fine_tuned

over every weight, the head included. The authors recommend alpha = 0.5 if nothing is known about
the shift. After the last step it is `ft` with `eval.line: 0.5`, which any method can have; here,
every report is of that point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field

from trainers.methods.base import Method, Weights
from trainers.methods.registry import register_method


@register_method("wise_ft")
class WiseFineTuning(Method):
    """WiSE-FT. With `alpha = 1` it is FT."""

    has_line: ClassVar[bool] = False
    name: Literal["wise_ft"] = "wise_ft"
    alpha: float = Field(default=0.5, ge=0, le=1)
    """0 is the zero-shot model, 1 the fine-tuned one."""

    def eval_weights(
        self, trained: Weights, initial: Weights, id_gradient: Callable[[Weights], Weights]
    ) -> Weights:
        from trainers.models.averaging import interpolate

        return interpolate(initial, trained, self.alpha)
