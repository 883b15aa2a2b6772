"""The space of KD: the weight of the divergence from the zero-shot predictions, learning rate.

Idea: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531,
with the zero-shot model for a teacher, as the Lipsum-FT paper (arXiv 2404.00860) has it among its
baselines. The weight used there was not found: the first point, weight 1, and the ranges are ours.
"""

from __future__ import annotations

from search_spaces.distributions import Float
from search_spaces.ft import FIRST_LR, LR
from search_spaces.space import SearchSpace

REG_WEIGHT = (0.01, 100.0)
"""Low and high, on a log scale."""


def kd() -> SearchSpace:
    """The space for distillation from the zero-shot model."""
    return SearchSpace(
        parameters={
            "method.reg_weight": Float(low=REG_WEIGHT[0], high=REG_WEIGHT[1], log=True),
            "optim.lr": Float(low=LR[0], high=LR[1], log=True),
        },
        initial_points=[{"method.reg_weight": 1.0, "optim.lr": FIRST_LR}],
    )
