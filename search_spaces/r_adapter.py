"""The space of R-Adapter: drop rate and share kept of the adapters, learning rate, averaging.

Paper: Kim et al., "Efficient and Versatile Robust Fine-Tuning of Zero-shot Models", ECCV 2024,
arXiv 2408.05749. The first point, drop rate 0.2, alpha 0.5, learning rate 5e-4 and decay 0.999, is
that of its authors' code on ImageNet, which also has weight decay 0, batches of 512, 500 warm-up
steps and 10 epochs: the trial's own here. Adapters start at zero and alone are trained, so they
take larger steps than a whole encoder. It is their moving average that is kept, and that starts at
zero too: in searches much shorter than a thousand steps 0.999 leaves the zero-shot model, whatever
else is tuned, and a smaller decay does not. The ranges are ours.
"""

from __future__ import annotations

from search_spaces.distributions import Float
from search_spaces.ema import EMA_DECAY
from search_spaces.space import SearchSpace

DROP_RATE = (0.0, 0.5)
LR = (1e-5, 1e-2)
"""Of AdamW on the adapters, on a log scale."""


def r_adapter() -> SearchSpace:
    """The space for residual adapters; alpha 0 is the zero-shot model, 1 all of the adapters."""
    return SearchSpace(
        parameters={
            "method.drop_rate": Float(low=DROP_RATE[0], high=DROP_RATE[1]),
            "method.alpha": Float(low=0.0, high=1.0),
            "optim.lr": Float(low=LR[0], high=LR[1], log=True),
            "method.ema_decay": Float(low=EMA_DECAY[0], high=EMA_DECAY[1]),
        },
        initial_points=[
            {
                "method.drop_rate": 0.2,
                "method.alpha": 0.5,
                "optim.lr": 5e-4,
                "method.ema_decay": 0.999,
            }
        ],
    )
