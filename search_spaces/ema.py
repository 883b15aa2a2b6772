"""The space of EMA, the moving average of plain fine-tuning's weights: its decay, learning rate.

A baseline of the Lipsum-FT paper (arXiv 2404.00860), whose decay was not found. The first point is
the usual 0.999, an average over about a thousand steps; searches much shorter than that want a
smaller decay, for until then the average is still near the zero-shot model. The ranges are ours.
"""

from __future__ import annotations

from search_spaces.distributions import Float
from search_spaces.ft import FIRST_LR, LR
from search_spaces.space import SearchSpace

EMA_DECAY = (0.9, 0.9999)
"""Share of the average that each step keeps. 1 - decay would be the natural scale, which a range of
the decay itself cannot have."""


def ema() -> SearchSpace:
    """The space for averaged fine-tuning."""
    return SearchSpace(
        parameters={
            "method.ema_decay": Float(low=EMA_DECAY[0], high=EMA_DECAY[1]),
            "optim.lr": Float(low=LR[0], high=LR[1], log=True),
        },
        initial_points=[{"method.ema_decay": 0.999, "optim.lr": FIRST_LR}],
    )
