"""Samplers of Optuna, which of them is chosen, and the points of a grid."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import optuna
from optuna._transform import _SearchSpaceTransform
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
from trainers.errors import ConfigError, first_line
from tuning.algorithms.gaussian_process import GuidedProcesses
from tuning.config.schema import SamplerConfig, SearchFile
from tuning.runs.records import ParamValue

GP_TRIALS: Final = 100
"""Trials up to which `auto` is `gp`, whose proposals take time with the cube of their number."""


class RobustGPSampler(GPSampler):
    """Optuna's Gaussian process, which also learns from pruned, failed and bad trials.

    The GPSampler of Optuna 5.0 sees complete trials only, so it would propose a point again that
    was pruned or failed a moment before. Here a pruned trial has the final value that
    `final_values` expects from its last report. A failed trial, such as one whose loss diverged,
    has the worst value of the others.

    Optuna's sampler scales values and violations of constraints by their standard deviation, so one
    training that collapsed would make all good ones look the same. They are passed through
    `compress_worse` and `clip_violations` first, which helps while fewer than half of the trainings
    have collapsed.

    What is optimised may be a less noisy stand-in for the objective, such as its NLL, whose best is
    at another place. If every complete trial has its objective, the values are
    corrected by what the objective differs from them, see `GuidedProcesses`.

    Args:
        objective: of a complete trial, higher is better, NaN without one. Default: what is
            optimised.
        violations: the violations of a complete trial as they are now; by default those at its end.
    """

    def __init__(
        self,
        *,
        objective: Callable[[FrozenTrial], float] | None = None,
        violations: Callable[[FrozenTrial], Mapping[str, float]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._objective = objective
        self._violations = violations or (lambda trial: trial.constraints)

    def _sample_relative_impl(
        self,
        study: optuna.Study,
        completed_trials: list[FrozenTrial],
        running_trials: list[FrozenTrial],
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        pruned, failed = (
            [
                trial
                for trial in study.get_trials(deepcopy=False, states=(state,))
                if search_space.keys() <= trial.params.keys()
            ]
            for state in (TrialState.PRUNED, TrialState.FAIL)
        )
        sign = np.array([-1.0 if d == StudyDirection.MINIMIZE else 1.0 for d in study.directions])
        complete = np.array([trial.values for trial in completed_trials])
        expected = final_values(pruned, completed_trials)
        scores = compress_worse(sign * np.concatenate([complete, expected]))
        if self._objective is not None:
            finals = np.array([[self._objective(trial)] for trial in completed_trials])
            if np.isfinite(finals).all():
                cube = _SearchSpaceTransform(search_space, transform_0_1=True)
                points = np.array([cube.transform(t.params) for t in completed_trials + pruned])
                finals, guide = compress_worse(finals)[:, 0], scores[:, 0]
                done, rng = len(finals), np.random.default_rng(0)
                processes = GuidedProcesses(points[:done], finals, guide[:done], rng)
                scores = processes.corrected(points, guide)[:, None]
        scores = np.concatenate([scores, np.tile(scores.min(axis=0), (len(failed), 1))])
        found = [self._violations(trial) for trial in completed_trials]
        violations = clip_violations(np.array([list(of.values()) for of in found]))
        violations = np.concatenate(
            [
                violations,
                np.tile(np.median(violations, axis=0), (len(pruned), 1)),
                np.tile(violations.max(axis=0), (len(failed), 1)),
            ]
        )
        known = [
            optuna.create_trial(
                params=trial.params,
                distributions=trial.distributions,
                values=values,
                constraints=dict(zip(found[0], violated, strict=True)),
            )
            for trial, values, violated in zip(
                [*completed_trials, *pruned, *failed],
                (sign * scores).tolist(),
                violations.tolist(),
                strict=True,
            )
        ]
        return super()._sample_relative_impl(study, known, running_trials, search_space)


def final_values(pruned: Sequence[FrozenTrial], complete: Sequence[FrozenTrial]) -> np.ndarray:
    """Expected final values of pruned trials, (pruned trials, objectives).

    With one objective, a line through the complete trials' values at the step of the last report
    and at the end predicts the final value. The Theil-Sen estimator fits it, so that single
    collapsed trainings do not move it, and the prediction is kept within the range of the complete
    trials. The median of the complete trials is expected where early values say nothing or rank
    trials in reverse, and with several objectives, of which studies have no reports.
    """
    from scipy.stats import theilslopes  # slow to import

    finals = np.array([trial.values for trial in complete])
    expected = np.tile(np.median(finals, axis=0), (len(pruned), 1))
    for row, trial in enumerate(pruned):
        if (step := trial.last_step) is None:
            continue
        pairs = [
            (other.intermediate_values[step], other.values[0])
            for other in complete
            if step in other.intermediate_values
        ]
        early, final = np.array(pairs).reshape(-1, 2).T
        if len(set(early)) > 1:
            slope, intercept = theilslopes(final, early)[:2]
            if slope > 0:
                value = intercept + slope * trial.intermediate_values[step]
                expected[row] = np.clip(value, finals.min(), finals.max())
    return expected


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


def clip_violations(violations: np.ndarray) -> np.ndarray:
    """Violations within twice the median of their sizes; the bound stays at 0.

    Args:
        violations: (trials, constraints); at most 0 where a constraint is met.
    """
    median = np.median(np.abs(violations), axis=0)
    limit = 2 * np.where(median > 0, median, 1)
    return np.clip(violations, -limit, limit)


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


def number_of_trials(file: SearchFile) -> int:
    """Most trials that the sampler can propose: the budget, or a smaller grid.

    A grid goes on after the points of a warm start, which are counted as if all were new.
    """
    search, trials = file.search, 0
    if search.sampler.name != "grid":
        return search.budget.trials
    earlier = () if search.warm_start.use == "observations" else search.warm_start.runs
    for part in file.search_space().parts().values():
        axes = grid_axes(part, search.sampler.grid_points)
        trials += math.prod(map(len, axes.values())) + len(earlier) * search.warm_start.top
    return min(search.budget.trials, trials)
