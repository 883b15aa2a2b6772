"""The space of CaRot: the weights of orthogonality and self-distillation, and the learning rate.

Paper: Oh et al., "Towards Calibrated Robust Fine-Tuning of Vision-Language Models", NeurIPS 2024,
arXiv 2311.01723. The first point, orthogonality 0.2, distillation 1.5 and learning rate 1e-5, is
that of its authors' code, which also has weight decay 0.1, batches of 512, 500 warm-up steps and 10
epochs: the trial's own here. The ranges are ours.
"""

from __future__ import annotations

from search_spaces.distributions import Float
from search_spaces.ft import LR
from search_spaces.space import SearchSpace

# Low and high, on a log scale.
ORTHOGONALITY_WEIGHT = (0.01, 10.0)
DISTILLATION_WEIGHT = (0.05, 50.0)


def carot() -> SearchSpace:
    """The space for calibrated robust fine-tuning."""
    orthogonality, distillation = ORTHOGONALITY_WEIGHT, DISTILLATION_WEIGHT
    return SearchSpace(
        parameters={
            "method.orthogonality_weight": Float(
                low=orthogonality[0], high=orthogonality[1], log=True
            ),
            "method.distillation_weight": Float(
                low=distillation[0], high=distillation[1], log=True
            ),
            "optim.lr": Float(low=LR[0], high=LR[1], log=True),
        },
        initial_points=[
            {
                "method.orthogonality_weight": 0.2,
                "method.distillation_weight": 1.5,
                "optim.lr": 1e-5,
            }
        ],
    )
