"""The space of WiSE-FT: how far to go from the zero-shot to the fine-tuned weights, learning rate.

Paper: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, arXiv 2109.01903. Where
nothing is known of the shift, its authors advise alpha 0.5; they sweep 0, 0.1 .. 1, and train with
AdamW at learning rate 3e-5, weight decay 0.1, batches of 512, 500 warm-up steps and 10 epochs.
Alpha and learning rate are the first point here, the rest is the trial's own; the range of the
learning rate is ours.
"""

from __future__ import annotations

from search_spaces.distributions import Float
from search_spaces.ft import LR
from search_spaces.space import SearchSpace


def wise_ft() -> SearchSpace:
    """The space for interpolation with the zero-shot weights; 0 is these, 1 plain fine-tuning."""
    return SearchSpace(
        parameters={
            "method.alpha": Float(low=0.0, high=1.0),
            "optim.lr": Float(low=LR[0], high=LR[1], log=True),
        },
        initial_points=[{"method.alpha": 0.5, "optim.lr": 3e-5}],
    )
