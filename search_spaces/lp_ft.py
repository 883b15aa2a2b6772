"""The space of LP-FT: how long and how fast the head is trained alone, then the learning rate.

Paper: Kumar, Raghunathan, Jones, Ma and Liang, "Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution", ICLR 2022, arXiv 2202.10054. Its authors' code trains the head
with SGD on ImageNet (5 epochs, rates 0.01, 0.03 and 0.1 tried, 0.1 used) and everything with SGD
after that; under AdamW those rates mean nothing. So the first point and all ranges are ours.
"""

from __future__ import annotations

from search_spaces.distributions import Float
from search_spaces.ft import FIRST_LR, LR
from search_spaces.space import SearchSpace

PROBE_FRACTION = (0.05, 0.5)
"""Share of all steps in which the head alone is trained."""
PROBE_LR = (1e-5, 1e-1)
"""Learning rate of these, on a log scale."""


def lp_ft() -> SearchSpace:
    """The space for a linear probe and fine-tuning after it."""
    return SearchSpace(
        parameters={
            "method.probe_fraction": Float(low=PROBE_FRACTION[0], high=PROBE_FRACTION[1]),
            "method.probe_lr": Float(low=PROBE_LR[0], high=PROBE_LR[1], log=True),
            "optim.lr": Float(low=LR[0], high=LR[1], log=True),
        },
        initial_points=[
            {"method.probe_fraction": 0.2, "method.probe_lr": 1e-3, "optim.lr": FIRST_LR}
        ],
    )
