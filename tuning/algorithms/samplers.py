"""Samplers of Optuna, which of them is chosen, and the points of a grid."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search_spaces import Categorical, SearchSpace
from tuning.config.schema import SamplerConfig
from tuning.runs.records import ParamValue

GP_TRIALS: Final = 100
"""Trials up to which `auto` is `gp`, whose proposals take time with the cube of their number."""


class RobustGPSampler(GPSampler):
    """Optuna's Gaussian process, which also learns from pruned, failed and bad trials.

    The GPSampler of Optuna 5.0 sees complete trials only, so it would propose a point again that
    was pruned or failed a moment before. Here a pruned trial has the median of the complete ones:
    its own last value was measured at another step and does not compare. A failed trial, such as
    one whose loss diverged, has the worst value of the complete ones.

    Optuna's sampler scales values by their standard deviation, so one training that collapsed would
    make all good ones look the same. Values are passed through `compress_worse` first, which helps
    while fewer than half of the trainings have collapsed.
    """

    def _sample_relative_impl(
        self,
        study: optuna.Study,
        completed_trials: list[FrozenTrial],
        running_trials: list[FrozenTrial],
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        is_minimized = np.array([d == StudyDirection.MINIMIZE for d in study.directions])
        sign = np.where(is_minimized, -1.0, 1.0)
        values = sign * compress_worse(sign * [trial.values for trial in completed_trials])
        violations = {
            name: [trial.constraints[name] for trial in completed_trials]
            for name in completed_trials[0].constraints
        }
        imputed = {
            TrialState.PRUNED: (
                np.median(values, axis=0),
                {name: float(np.median(found)) for name, found in violations.items()},
            ),
            TrialState.FAIL: (
                np.where(is_minimized, values.max(axis=0), values.min(axis=0)),
                {name: max(found) for name, found in violations.items()},
            ),
        }
        compressed = []
        for trial, of_trial in zip(completed_trials, values.tolist(), strict=True):
            compressed.append(copy(trial))
            compressed[-1].values = of_trial
        unsuccessful = [
            optuna.create_trial(
                params=trial.params,
                distributions=trial.distributions,
                values=imputed[trial.state][0].tolist(),
                constraints=imputed[trial.state][1],
            )
            for trial in study.get_trials(deepcopy=False, states=tuple(imputed))
            if search_space.keys() <= trial.params.keys()
        ]
        known = [*compressed, *unsuccessful]
        return super()._sample_relative_impl(study, known, running_trials, search_space)


def compress_worse(scores: np.ndarray) -> np.ndarray:
    """Scores with those below the median closer to it, on a logarithmic scale; their order stays.

    The scale of an objective is the distance s of its best score from the median m. A score at a
    distance of d below the median becomes ``m - s log(1 + d / s)``.

    Args:
        scores: (trials, objectives), higher is better.
    """
    median = np.median(scores, axis=0)
    scale = scores.max(axis=0) - median
    below = np.maximum(median - scores, 0)
    compressed = median - scale * np.log1p(below / np.where(scale > 0, scale, 1))
    return np.where((below > 0) & (scale > 0), compressed, scores)


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


def create_sampler(config: SamplerConfig, known_trials: int = 0) -> BaseSampler:
    """The sampler of a resolved configuration.

    Args:
        known_trials: number of trials in the study, which is part of the seed: with the same seed
            after a resume, a sampler would propose the same points again.
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
        return RobustGPSampler(seed=seed, n_startup_trials=config.startup_trials)
    if config.name == "cma_es":
        return CmaEsSampler(seed=seed, n_startup_trials=config.startup_trials)
    if config.name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=max(2, config.startup_trials))
    if config.name == "qmc":  # the study counts its points, so the seed stays
        return QMCSampler(seed=config.seed, scramble=True)
    return RandomSampler(seed=seed)


def grid(space: SearchSpace, points: int, seed: int) -> list[dict[str, ParamValue]]:
    """All combinations of `points` values a numeric parameter and all choices, well shuffled."""
    axes: Mapping[str, Sequence[ParamValue]] = {
        key: parameter.choices
        if isinstance(parameter, Categorical)
        else sorted({parameter.at(unit) for unit in np.linspace(0, 1, points)})
        for key, parameter in space.parameters.items()
    }
    combinations = [
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    ]
    order = np.random.default_rng(seed).permutation(len(combinations))
    return [combinations[index] for index in order]
