"""The space of CAR-FT: the weight of the divergence between context distributions, learning rate.

Paper: Mao et al., "Context-Aware Robust Fine-Tuning", IJCV 2024, arXiv 2211.16175. Its authors'
code was not found. The first point's weight, 1, is that of an implementation by others, not
verified against the paper; the ranges are ours.
"""

from __future__ import annotations

from search_spaces.distributions import Float
from search_spaces.ft import FIRST_LR, LR
from search_spaces.space import SearchSpace

REG_WEIGHT = (0.01, 100.0)
"""Low and high, on a log scale."""


def car_ft() -> SearchSpace:
    """The space for context-aware fine-tuning."""
    return SearchSpace(
        parameters={
            "method.reg_weight": Float(low=REG_WEIGHT[0], high=REG_WEIGHT[1], log=True),
            "optim.lr": Float(low=LR[0], high=LR[1], log=True),
        },
        initial_points=[{"method.reg_weight": 1.0, "optim.lr": FIRST_LR}],
    )
