"""The space of StarFT: the weight of the alignment on spurious texts, and the learning rate.

Paper: Kim et al., "StarFT: Robust Fine-tuning of Zero-shot Models via Spuriosity Alignment", IJCAI
2025, arXiv 2505.13232. The first point, weight 0.5 (which falls to 0 over the run) and learning
rate 1e-5, is that of its authors' code, which also has weight decay 0.1, batches of 512, 500 warm-
up steps and 10 epochs: the trial's own here. The ranges are ours.
"""

from __future__ import annotations

from search_spaces.distributions import Float
from search_spaces.ft import LR
from search_spaces.space import SearchSpace

REG_WEIGHT = (0.01, 10.0)
"""Low and high, on a log scale."""


def star_ft() -> SearchSpace:
    """The space for fine-tuning with spurious texts."""
    return SearchSpace(
        parameters={
            "method.reg_weight": Float(low=REG_WEIGHT[0], high=REG_WEIGHT[1], log=True),
            "optim.lr": Float(low=LR[0], high=LR[1], log=True),
        },
        initial_points=[{"method.reg_weight": 0.5, "optim.lr": 1e-5}],
    )
