"""The space of TPGM: how fast its projection radii are learnt, and the learning rate.

Paper: Tian et al., "Trainable Projected Gradient Method for Robust Fine-Tuning", CVPR 2023, arXiv
2303.10720. Its authors' code learns the radii with Adam at rate 1e-2, in units of the distance that
a weight has moved. The first point has the same number, here in shares of that distance, and plain
fine-tuning's learning rate: theirs for CLIP was not found. The ranges are ours.
"""

from __future__ import annotations

from search_spaces.distributions import Float
from search_spaces.ft import FIRST_LR, LR
from search_spaces.space import SearchSpace

PROJECTION_LR = (1e-3, 0.1)
"""Of Adam on the radii, on a log scale; at 0.1 a few steps go from one end to the other."""


def tpgm() -> SearchSpace:
    """The space for projected fine-tuning."""
    return SearchSpace(
        parameters={
            "method.projection_lr": Float(low=PROJECTION_LR[0], high=PROJECTION_LR[1], log=True),
            "optim.lr": Float(low=LR[0], high=LR[1], log=True),
        },
        initial_points=[{"method.projection_lr": 1e-2, "optim.lr": FIRST_LR}],
    )
