"""Which finished trial has the best hyperparameters, and how sure that is.

One training is a noisy measure of its configuration. A Gaussian process through the final
objectives of all finished trials separates what changes with the hyperparameters from what changes
from one training to the next. Few trials fit many such processes, so beliefs are averages over
them. They are still too sure with few trials and much noise.
"""

from __future__ import annotations

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
_KERNELS: Final = 256
_AMPLITUDE: Final = (0.05, 20.0)
"""Range of the variance of the configurations, relative to that of the scores."""
_LENGTH: Final = (0.1, 10.0)
"""Range of the length scales, relative to the range of a hyperparameter in the trials."""
_NOISE: Final = (0.01, 1.0)
"""Range of the variance from one training to the next, relative to that of the scores."""
_LOG_RANGE: Final = 10.0
"""Positive values that span this factor are compared on a log scale."""


@dataclass(frozen=True)
class Belief:
    """What the Gaussian processes say about one trial."""

    trial: TrialRecord
    mean: float
    """Expected objective of its hyperparameters."""
    chance: float
    """Probability that no other of the trials has better hyperparameters, 0 to 1."""


def beliefs(search: SearchRecord, records: Sequence[TrialRecord]) -> tuple[Belief, ...]:
    """The trials to choose among, or the best `MAX_TRIALS` of them, best expectation first.

    Few trainings lie close to the ends of the ranges, so the expectation of a trial there is
    uncertain. It is easily the most probable best one, although others are expected to be better.

    Empty with several objectives or methods, a hyperparameter that is no number, none that varies,
    fewer than `MIN_TRIALS` trials, or equal scores.
    """
    pool = contenders(search, records, search.values)
    trials = [record for record in pool if record.outcome == "finished"]
    objective, *others = search.objectives
    if others or len(search.methods(records)) > 1 or len(trials) < MIN_TRIALS:
        return ()

    def score(record: TrialRecord) -> float:
        return objective.signed(record.metrics[objective.metric])

    trials = sorted(trials, key=lambda record: (-score(record), record.number))[:MAX_TRIALS]
    points = _points(trials)
    if points is None:
        return ()
    scores = compress_worse(np.array([[score(record)] for record in trials]))[:, 0]
    if not np.ptp(scores):
        return ()
    shift, scale = scores.mean(), scores.std()
    mean, chances = _posterior(points, (scores - shift) / scale)
    found = [
        Belief(trial, objective.signed(float(shift + scale * value)), float(chance))
        for trial, value, chance in zip(trials, mean, chances, strict=True)
    ]
    return tuple(sorted(found, key=lambda b: (-objective.signed(b.mean), b.trial.number)))


def _posterior(points: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expectation of each point, and the probability that it is the best one.

    Averages over Gaussian processes with a Matérn kernel (nu = 5/2), whose amplitude, length scales
    and noise are drawn from `_AMPLITUDE`, `_LENGTH` and `_NOISE`, weighted by their marginal
    likelihood.

    Args:
        points: (trials, parameters).
        scores: standardised.
    """
    rng, number = np.random.default_rng(0), len(scores)

    def draw(bounds: tuple[float, float], *shape: int) -> np.ndarray:
        low, high = np.log(bounds)
        return np.exp(rng.uniform(low, high, size=(_KERNELS, *shape)))

    amplitudes, noises = draw(_AMPLITUDE, 1, 1), draw(_NOISE, 1, 1)
    squares = (points[:, None] - points) ** 2  # (trials, trials, parameters)
    distances = np.sqrt(5 * np.tensordot(draw(_LENGTH, points.shape[1]) ** -2, squares, (1, 2)))
    prior = amplitudes * (1 + distances + distances**2 / 3) * np.exp(-distances)
    lower = np.linalg.cholesky(prior + noises * np.eye(number))
    white = np.linalg.solve(lower, np.broadcast_to(scores[:, None], (_KERNELS, number, 1)))[..., 0]
    likelihoods = -0.5 * (white**2).sum(axis=1)
    likelihoods -= np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1)
    weights = np.exp(likelihoods - likelihoods.max())
    mean, wins = np.zeros(number), np.zeros(number)
    draws = rng.multinomial(_DRAWS, weights / weights.sum())
    for kernel in np.flatnonzero(draws):
        half = np.linalg.solve(lower[kernel], prior[kernel])
        expected = white[kernel] @ half
        # Of the configurations, not of new trainings: without the noise. A smooth kernel has a
        # covariance of almost rank 1, hence the small diagonal.
        covariance = prior[kernel] - half.T @ half + 1e-6 * amplitudes[kernel] * np.eye(number)
        spread = rng.standard_normal((draws[kernel], number)) @ np.linalg.cholesky(covariance).T
        wins += np.bincount((expected + spread).argmax(axis=1), minlength=number)
        mean += draws[kernel] * expected
    return mean / _DRAWS, wins / _DRAWS


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
