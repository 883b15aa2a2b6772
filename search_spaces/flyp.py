"""The space of FLYP: the learning rate of CLIP's own contrastive loss.

Paper: Goyal, Kumar, Garg, Kolter and Raghunathan, "Finetune like you pretrain: Improved finetuning
of zero-shot vision models", CVPR 2023, arXiv 2212.00638. Its authors' code trains on ImageNet with
AdamW at learning rate 1e-5, the first point, with weight decay 0.1, batches of 512, 500 warm-up
steps and 10 epochs, all of which are the trial's own here. The range is ours.
"""

from __future__ import annotations

from search_spaces.distributions import Float
from search_spaces.ft import LR
from search_spaces.space import SearchSpace


def flyp() -> SearchSpace:
    """The space for contrastive fine-tuning."""
    return SearchSpace(
        parameters={"optim.lr": Float(low=LR[0], high=LR[1], log=True)},
        initial_points=[{"optim.lr": 1e-5}],
    )
