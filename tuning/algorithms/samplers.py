"""Samplers of Optuna, and the points of a grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)

from search_spaces import SearchSpace
from tuning.config.schema import SamplerConfig
from tuning.runs.records import ParamValue


def create_sampler(config: SamplerConfig, known_trials: int = 0) -> BaseSampler:
    """The sampler of a configuration.

    Args:
        known_trials: number of trials in the study, which is part of the seed: with the same seed
            after a resume, a sampler would propose the same points again.
    """
    seed = int(np.random.SeedSequence((config.seed, known_trials)).generate_state(1)[0])
    if config.name == "tpe":
        return TPESampler(
            seed=seed,
            n_startup_trials=config.startup_trials,
            multivariate=True,
            constant_liar=True,  # trials run side by side: keep away from what is being tried
        )
    if config.name == "gp":
        return GPSampler(seed=seed, n_startup_trials=config.startup_trials)
    if config.name == "cma_es":
        return CmaEsSampler(seed=seed, n_startup_trials=config.startup_trials)
    if config.name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=max(2, config.startup_trials))
    if config.name == "qmc":  # the study counts its points, so the seed stays
        return QMCSampler(seed=config.seed, scramble=True)
    return RandomSampler(seed=seed)


def grid(space: SearchSpace, points: int, seed: int) -> list[dict[str, ParamValue]]:
    """All combinations of `points` values a numeric parameter and all choices, well shuffled."""
    axes = {key: _axis(of_key, points) for key, of_key in space.distributions().items()}
    combinations = [
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    ]
    order = np.random.default_rng(seed).permutation(len(combinations))
    return [combinations[index] for index in order]


def _axis(distribution: BaseDistribution, points: int) -> Sequence[ParamValue]:
    if isinstance(distribution, CategoricalDistribution):
        return [choice for choice in distribution.choices if choice is not None]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    values: np.ndarray = (np.geomspace if distribution.log else np.linspace)(low, high, points)
    if step is not None:
        values = low + np.round((values - low) / step) * step
    kind = int if isinstance(distribution, IntDistribution) else float
    return sorted({kind(value) for value in values.clip(low, high)})
