"""Early stopping by the pruners of Optuna.

A pruner compares trials by what the sampler optimises: the NLL at a rung also ranks the final
accuracies where the accuracy there does not. Its notes are in the studies, which a resume makes
anew from the reports in the journal, in their order.
"""

from __future__ import annotations

import copy
from typing import Final

from optuna.pruners import BasePruner, SuccessiveHalvingPruner

from tuning.config.schema import SchedulerConfig

LEAST_FINISHED: Final = 6
"""Trials (of a method) that finish before any is stopped: a few early values say little."""


def create_pruner(
    config: SchedulerConfig | BasePruner, total_steps: int, eval_every: int
) -> BasePruner | None:
    """A new pruner of a configuration, or a copy of the user's; None if every trial finishes."""
    if isinstance(config, BasePruner):
        return copy.deepcopy(config)
    if config.name == "none":
        return None
    return SuccessiveHalvingPruner(
        min_resource=config.first_step(total_steps, eval_every),
        reduction_factor=config.reduction_factor,
    )
