"""Samplers and pruners of Optuna, and which of them is chosen."""

from __future__ import annotations

import copy
from typing import Final

import numpy as np
from optuna.pruners import BasePruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from search_spaces import Categorical, SearchSpace
from tuning.algorithms.gp_sampler import RobustGPSampler
from tuning.config.schema import SamplerConfig, SchedulerConfig

GP_TRIALS: Final = 100
"""Trials up to which `auto` is `gp`, whose proposals take time with the cube of their number."""
LEAST_FINISHED: Final = 6
"""Trials (of a method) that finish before any is stopped: a few early values say little."""


def resolve_sampler(
    config: SamplerConfig, space: SearchSpace, trials: int, objectives: int = 1
) -> SamplerConfig:
    """The configuration for one study, with a name in place of `auto` and its startup trials."""
    name = config.name
    if name == "auto":
        choices = [p for p in space.parameters.values() if isinstance(p, Categorical)]
        is_numeric = all(len(parameter.choices) == 1 for parameter in choices)
        name = "gp" if is_numeric and objectives == 1 and trials <= GP_TRIALS else "tpe"
    startup_trials = config.startup_trials or (4 if name == "gp" else 6)
    return config.model_copy(update={"name": name, "startup_trials": startup_trials})


def create_sampler(config: SamplerConfig, number: int) -> BaseSampler:
    """The sampler of a resolved configuration for one proposal, whose number is part of the seed.

    A grid has no sampler: its points are enqueued.
    """
    assert config.startup_trials is not None
    seed = int(np.random.SeedSequence((config.seed, number)).generate_state(1)[0])
    if config.name == "tpe":
        return TPESampler(
            seed=seed,
            n_startup_trials=config.startup_trials,
            multivariate=True,
            constant_liar=True,  # trials run side by side: keep away from what is being tried
        )
    if config.name == "gp":
        return RobustGPSampler(
            reach=config.reach, seed=seed, n_startup_trials=config.startup_trials
        )
    return RandomSampler(seed=seed)


def create_pruner(
    config: SchedulerConfig | BasePruner, total_steps: int, eval_every: int
) -> BasePruner | None:
    """A new pruner of a configuration, or a copy of the user's; None if every trial finishes.

    It compares trials by what the sampler optimises: the NLL at a rung also ranks the final
    accuracies where the accuracy there does not. Its notes are in the studies.
    """
    if isinstance(config, BasePruner):
        return copy.deepcopy(config)
    if config.name == "none":
        return None
    return SuccessiveHalvingPruner(
        min_resource=config.first_step(total_steps, eval_every),
        reduction_factor=config.reduction_factor,
    )
