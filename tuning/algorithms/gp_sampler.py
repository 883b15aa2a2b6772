"""Optuna's Gaussian process, for a few noisy trainings of which some are pruned, fail or collapse.

It mostly searches near the best trial.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import GPSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from optuna._gp.acqf import BaseAcquisitionFunc  # imports PyTorch

_ANYWHERE_EVERY: Final = 4
"""Of this many proposals, one is not limited to a region."""


class RobustGPSampler(GPSampler):
    """Optuna's Gaussian process, which also learns from pruned, failed and bad trials.

    The GPSampler of Optuna 5 sees complete trials only, so it would propose a point again that
    was pruned or failed a moment before. Here a pruned trial has the value that `final_values`
    expects, and a failed one, such as one whose loss diverged, the worst value of the others.

    Optuna scales values and violations by their standard deviation, so one training that collapsed
    would make all good ones look the same. They are passed through `compress_worse` and
    `clip_violations`, which helps while fewer than half of the trainings have collapsed.

    A Gaussian process that knows little proposes the ends of the ranges, which are seldom good. So
    three of four proposals are near the best trial that meets the constraints, as in a trust region
    (Eriksson et al., NeurIPS 2019; here of constant size), and the fourth one is anywhere. With
    several objectives, or if no trial meets the constraints, every proposal is anywhere.
    """

    def __init__(self, *, reach: float = 1.0, n_startup_trials: int = 10, **options: Any) -> None:
        super().__init__(n_startup_trials=n_startup_trials, **options)
        self._reach, self._startup_trials = reach, n_startup_trials

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What Optuna's sampler proposes in a study that has the trials as it should see them."""
        completed_trials, running_trials, pruned, failed = (
            [
                trial
                for trial in study.get_trials(deepcopy=False, states=(state,))
                if search_space.keys() <= trial.params.keys()
            ]
            for state in (
                TrialState.COMPLETE,
                TrialState.RUNNING,
                TrialState.PRUNED,
                TrialState.FAIL,
            )
        )
        if not search_space or len(completed_trials) < self._startup_trials:
            return {}
        sign = np.array([-1.0 if d == StudyDirection.MINIMIZE else 1.0 for d in study.directions])
        complete = np.array([trial.values for trial in completed_trials])
        expected = final_values(pruned, completed_trials)
        scores = compress_worse(sign * np.concatenate([complete, expected]))
        scores = np.concatenate([scores, np.tile(scores.min(axis=0), (len(failed), 1))])
        found = [trial.constraints for trial in completed_trials]
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
        allowed = [n for n in range(len(completed_trials)) if (violations[n] <= 0).all()]
        turn = (len(known) + len(running_trials) + 1) % _ANYWHERE_EVERY
        if turn != 0 and len(study.directions) == 1 and allowed:
            best = completed_trials[max(allowed, key=lambda n: scores[n, 0])]
            search_space = region_around(best.params, search_space, self._reach)
        seen = optuna.create_study(directions=study.directions)
        seen.add_trials([*known, *running_trials, optuna.create_trial(state=TrialState.RUNNING)])
        # Where trainings occupy all cores, threads that wait for each other make a proposal take
        # many times as long. Optuna limits those of PyTorch.
        with threadpool_limits(1, user_api="blas"):
            return super().sample_relative(seen, seen.get_trials(deepcopy=False)[-1], search_space)

    def _optimize_acqf(
        self, acqf: BaseAcquisitionFunc, best_params: np.ndarray | None
    ) -> np.ndarray:
        """Optimise within the region alone.

        Optuna 5 starts at the best of all trials, which may lie outside where the space of a
        proposal is a part of the whole one.
        """
        if best_params is not None:
            numeric = best_params[:, ~acqf.search_space.is_categorical]
            best_params = best_params[(np.abs(numeric - 0.5) <= 0.5 + 1e-9).all(axis=1)]
        return super()._optimize_acqf(acqf, best_params)


def region_around(
    center: Mapping[str, Any], space: Mapping[str, BaseDistribution], reach: float
) -> dict[str, BaseDistribution]:
    """The part of a space that is near a point. Choices and floats on a grid stay as they are.

    Args:
        reach: to both sides, as a share of each (log) range. For integers, the ends are rounded
            away from the point.
    """
    region = dict(space)
    for name, whole in space.items():
        if not isinstance(whole, FloatDistribution | IntDistribution):
            continue
        scale, inverse = (math.log, math.exp) if whole.log else (float, float)
        start, middle, end = scale(whole.low), scale(center[name]), scale(whole.high)
        width = reach * (end - start)
        low = inverse(middle - width) if middle - width > start else whole.low
        high = inverse(middle + width) if middle + width < end else whole.high
        if isinstance(whole, IntDistribution):
            first = whole.low + math.floor((low - whole.low) / whole.step) * whole.step
            last = whole.low + math.ceil((high - whole.low) / whole.step) * whole.step
            region[name] = IntDistribution(first, min(last, whole.high), whole.log, whole.step)
        elif whole.step is None:
            region[name] = FloatDistribution(low, high, whole.log)
    return region


def final_values(pruned: Sequence[FrozenTrial], complete: Sequence[FrozenTrial]) -> np.ndarray:
    """Expected final values of pruned trials, (pruned trials, objectives).

    With one objective, a line through the complete trials' values at the step of the last report
    and at the end predicts it, by the Theil-Sen estimator and within their range. It is the median
    of the complete trials where early values say nothing or rank trials in reverse, and with
    several objectives, of which studies have no reports.
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
            if math.isfinite(other.intermediate_values.get(step, math.nan))
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
