"""Samplers of Optuna, which of them is chosen, and the points of a grid."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import optuna
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial

from search_spaces import Categorical, SearchSpace
from trainers.errors import ConfigError, first_line
from tuning.algorithms.gp_sampler import RobustGPSampler
from tuning.config.schema import SamplerConfig
from tuning.runs.records import ParamValue

GP_TRIALS: Final = 100
"""Trials up to which `auto` is `gp`, whose proposals take time with the cube of their number."""


def resolve_sampler(
    config: SamplerConfig, space: SearchSpace, trials: int, objectives: int = 1
) -> SamplerConfig:
    """The configuration with a name in place of `auto`, and the startup trials that suit it.

    Args:
        space: of one study.
        trials: that it may have.
    """
    name = config.name
    if name == "auto":
        choices = [p for p in space.parameters.values() if isinstance(p, Categorical)]
        is_numeric = all(len(parameter.choices) == 1 for parameter in choices)
        name = "gp" if is_numeric and objectives == 1 and trials <= GP_TRIALS else "tpe"
    startup_trials = config.startup_trials or (4 if name == "gp" else 6)
    return config.model_copy(update={"name": name, "startup_trials": startup_trials})


def create_sampler(
    config: SamplerConfig,
    known_trials: int = 0,
    objective: Callable[[FrozenTrial], float] | None = None,
    violations: Callable[[FrozenTrial], Mapping[str, float]] | None = None,
) -> BaseSampler:
    """The sampler of a resolved configuration.

    Args:
        known_trials: number of trials in the study, which is part of the seed: with the same seed
            after a resume, a sampler would propose the same points again.
        objective: see `RobustGPSampler`; other samplers optimise the values of the study.
        violations: see there too; other samplers take those at the end of a trial.
    """
    assert config.startup_trials is not None
    seed = int(np.random.SeedSequence((config.seed, known_trials)).generate_state(1)[0])
    if config.name == "tpe":
        return TPESampler(
            seed=seed,
            n_startup_trials=config.startup_trials,
            multivariate=True,
            constant_liar=True,  # trials run side by side: keep away from what is being tried
        )
    if config.name == "gp":
        return RobustGPSampler(
            reach=config.reach,
            objective=objective,
            violations=violations,
            seed=seed,
            n_startup_trials=config.startup_trials,
        )
    if config.name == "cma_es":
        return CmaEsSampler(seed=seed, n_startup_trials=config.startup_trials)
    if config.name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=max(2, config.startup_trials))
    if config.name == "qmc":  # the study counts its points, so the seed stays
        return QMCSampler(seed=config.seed, scramble=True)
    return RandomSampler(seed=seed)


def check_sampler(sampler: BaseSampler, space: SearchSpace, objectives: int) -> None:
    """Check that a copy of the user's sampler can propose a first trial of each method.

    A sampler that is not one of Optuna's may have side effects, and is not checked.

    Raises:
        ConfigError: it cannot, such as a GridSampler of other parameters.
    """
    if not type(sampler).__module__.startswith("optuna.samplers."):
        return
    try:
        copy.deepcopy(sampler)
    except Exception:  # what the user gave it, such as a function with a lock
        return
    for part in space.parts().values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                study = optuna.create_study(
                    directions=["minimize"] * objectives, sampler=copy.deepcopy(sampler)
                )
                study.ask(fixed_distributions=part.distributions())
            except Exception as error:  # whatever a sampler raises
                name = type(sampler).__name__
                problem = f"{name} cannot search this space: {first_line(error)}"
                raise ConfigError(problem, key="sampler") from error


def grid_axes(space: SearchSpace, points: int) -> Mapping[str, Sequence[ParamValue]]:
    """The values on each axis of a grid: `points` of a numeric parameter, or all choices."""
    return {
        key: parameter.choices
        if isinstance(parameter, Categorical)
        else sorted({parameter.at(unit) for unit in np.linspace(0, 1, points)})
        for key, parameter in space.parameters.items()
    }
