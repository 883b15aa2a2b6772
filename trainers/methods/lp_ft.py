"""LP-FT: a linear probe first, then fine-tuning from the head of the probe.

Kumar, Raghunathan, Jones, Ma and Liang, "Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution", ICLR 2022 (arXiv 2202.10054). In the first stage only the head
is trained, on the features of the frozen encoder; in the second everything is. Each stage has its
own learning-rate schedule and optimiser, and minimises cross-entropy::

    stage 1   head            steps 0 .. F - 1        peak learning rate probe_lr
    stage 2   encoder, head   steps F .. steps - 1    peak learning rate optim.lr

with ``F = probe_fraction * steps``, so that LP-FT costs no more steps than the others.

The authors train a probe with its own scale, bias and initialisation to convergence. Here it is the
head of all methods: without a bias, initialised as the zero-shot head. The defaults were therefore
chosen here, and the authors' results have not been reproduced.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainers.methods.base import Method, Stage
from trainers.methods.registry import register_method


@register_method("lp_ft")
class LinearProbeFineTuning(Method):
    """LP-FT. With `probe_fraction = 0` it is FT."""

    name: Literal["lp_ft"] = "lp_ft"
    probe_fraction: float = Field(default=0.2, ge=0, lt=1)
    """Share of the steps that train only the head."""
    probe_lr: float = Field(default=1e-3, gt=0, le=1000)
    """Peak learning rate of these steps; `optim.head_lr_factor` does not change it."""

    def stage(self, step: int, steps: int) -> Stage:
        probing = round(self.probe_fraction * steps)
        if step < probing:
            return Stage(0, probing, self.probe_lr, head_alone=True)
        return Stage(probing, steps - probing)
