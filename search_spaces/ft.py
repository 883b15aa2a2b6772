"""The space of plain fine-tuning (FT): the learning rate and nothing else.

Cross-entropy has no setting of its own, so all that can be tuned is the optimiser's. The first
point is the learning rate that the Lipsum-FT paper (arXiv 2404.00860) trains with; the range, ours,
is that of every method here that trains the whole image encoder.
"""

from __future__ import annotations

from search_spaces.distributions import Float
from search_spaces.space import SearchSpace

LR = (1e-6, 1e-3)
"""Of AdamW on all weights of CLIP, on a log scale."""
FIRST_LR = 1e-5


def ft() -> SearchSpace:
    """The space for plain fine-tuning."""
    return SearchSpace(
        parameters={"optim.lr": Float(low=LR[0], high=LR[1], log=True)},
        initial_points=[{"optim.lr": FIRST_LR}],
    )
