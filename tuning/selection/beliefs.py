"""How sure it is which finished trial is the best.

One training is a noisy measure of its configuration. A Gaussian process through the final
objectives of all finished trials separates what changes with the hyperparameters from what changes
from one training to the next.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tuning.algorithms.samplers import compress_worse
from tuning.runs.records import SearchRecord, TrialRecord
from tuning.selection.ranking import contenders

MIN_TRIALS: Final = 8
"""Finished trials from which on the noise can be told from the hyperparameters."""
MAX_TRIALS: Final = 100
"""Trials that are looked at, the best measured ones: the time grows with the cube of the number."""
_DRAWS: Final = 10_000
_LOG_RANGE: Final = 10.0
"""Positive values that span this factor are compared on a log scale."""


@dataclass(frozen=True)
class Belief:
    """What the Gaussian process says about one trial."""

    trial: TrialRecord
    mean: float
    """Expected objective of its hyperparameters."""
    chance: float
    """Probability that no other of the trials has better hyperparameters, 0 to 1."""


def beliefs(search: SearchRecord, records: Sequence[TrialRecord]) -> tuple[Belief, ...]:
    """The trials to choose among, or the best `MAX_TRIALS` of them, most probably best first.

    Empty with several objectives or methods, a hyperparameter that is no number, none that varies,
    or fewer than `MIN_TRIALS` trials.
    """
    finished = [record for record in records if record.outcome == "finished"]
    trials = contenders(search, finished, search.values)
    objective, *others = search.objectives
    if others or len(search.methods(records)) > 1 or len(trials) < MIN_TRIALS:
        return ()

    def score(record: TrialRecord) -> float:
        return objective.signed(record.metrics[objective.metric])

    trials = sorted(trials, key=score, reverse=True)[:MAX_TRIALS]
    points = _points(trials)
    if points is None:
        return ()
    from sklearn.gaussian_process import GaussianProcessRegressor  # slow to import
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    scores = compress_worse(np.array([[score(record)] for record in trials]))[:, 0]
    shift, scale = scores.mean(), scores.std() or 1.0
    matern = Matern([0.5] * points.shape[1], (0.1, 10), nu=2.5)
    kernel = ConstantKernel(1.0, (0.05, 20)) * matern + WhiteKernel(0.1, (0.01, 1))
    process = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values at their bounds, which are meant as limits
        process.fit(points, (scores - shift) / scale)
    mean, covariance = process.predict(points, return_cov=True)
    # Of the configurations, not of new trainings: without the variance of the last term.
    covariance -= process.kernel_.k2.noise_level * np.eye(len(trials))
    draws = np.random.default_rng(0).multivariate_normal(
        mean, covariance, size=_DRAWS, method="eigh"
    )
    chances = np.bincount(draws.argmax(axis=1), minlength=len(trials)) / _DRAWS
    found = [
        Belief(trial, objective.signed(float(shift + scale * value)), float(chance))
        for trial, value, chance in zip(trials, mean, chances, strict=True)
    ]
    return tuple(sorted(found, key=lambda belief: -belief.chance))


def _points(trials: Sequence[TrialRecord]) -> np.ndarray | None:
    """Hyperparameters that vary, each scaled to 0 to 1 over the trials, (trials, parameters)."""
    columns = []
    for key in sorted(trials[0].params):
        column = [record.params.get(key) for record in trials]
        if len(set(column)) == 1:
            continue
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in column):
            return None
        values = np.array(column, float)
        if values.min() > 0 and values.max() / values.min() >= _LOG_RANGE:
            values = np.log(values)
        columns.append((values - values.min()) / (values.max() - values.min()))
    return np.stack(columns, axis=1) if columns else None
