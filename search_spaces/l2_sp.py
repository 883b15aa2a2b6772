"""The space of L2-SP: the weight of the squared distance to the zero-shot weights, learning rate.

Paper: Li, Grandvalet and Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional
Networks", ICML 2018, arXiv 1802.01483. The first point's weight, 0.01 of the sum of squares with no
factor 1/2, is what the code of LP-FT's authors uses for it on other data and models; what the
Lipsum-FT paper (arXiv 2404.00860) used for CLIP was not found. The ranges are ours.
"""

from __future__ import annotations

from search_spaces.distributions import Float
from search_spaces.ft import FIRST_LR, LR
from search_spaces.space import SearchSpace

REG_WEIGHT = (1e-5, 10.0)
"""Low and high, on a log scale."""


def l2_sp() -> SearchSpace:
    """The space for L2-SP."""
    return SearchSpace(
        parameters={
            "method.reg_weight": Float(low=REG_WEIGHT[0], high=REG_WEIGHT[1], log=True),
            "optim.lr": Float(low=LR[0], high=LR[1], log=True),
        },
        initial_points=[{"method.reg_weight": 0.01, "optim.lr": FIRST_LR}],
    )
