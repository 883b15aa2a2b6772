"""What the best trial of a search is expected to have with a new seed.

Trials with similar hyperparameters differ by their hyperparameters, which act smoothly, and by
chance. A Gaussian process through the trials tells the two apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from search_spaces.distributions import Categorical
from tuning.runs.ranking import ranked
from tuning.runs.records import SearchRecord, TrialRecord, zero_shot_record

_LEAST: Final = 10
"""Trials without which nothing is said: the means of fewer are too low."""
_MOST: Final = 50
"""Those nearest to the best trial."""
_LENGTHS: Final = (0.15, 5.0)
"""Of the process, as shares of each range of the space."""
_NOISE: Final = (0.02, 3.0)
"""Variance of the noise, as a share of that of the process."""
_ROUNDS: Final = (400, *[300] * 10, 1500)
"""Draws of lengths and noise. The first round is from their priors, each later one around the best
draws of the round before, and the last one counts."""
_OF_PRIOR: Final = 0.1
"""Share of each round that is from the priors, so that no part of them is missed."""
_KEPT: Final = 30
"""Effective number of draws that a round is drawn around."""
_LEAST_EFFECTIVE: Final = 50
"""Effective number of draws of the last round without which nothing is said."""


def expected_value(search: SearchRecord, records: Sequence[TrialRecord]) -> float | None:
    """What the first objective of the best trial is expected to be with a new seed.

    It is the mean of the Gaussian process there. None with fewer than ten trials, and where too few
    draws of its lengths explain the trials.
    """
    objective = search.objectives[0]
    trials = _around_best(search, records)
    if len(trials) < _LEAST:
        return None
    sign = objective.signed(1.0)
    values = sign * np.array([record.last(objective.metric) for record in trials], float)
    # Bad trainings are at most twice as far below the median as the best one is above it.
    median = np.median(values)
    values = np.maximum(values, median - 2 * (values.max() - median))
    means, effective = smoothed(coordinates(search, trials), values)
    return sign * float(means[0]) if effective >= _LEAST_EFFECTIVE else None


def _around_best(search: SearchRecord, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The best trial and those of its method nearest to it, without those that collapsed.

    These are farther below the zero-shot model than the best trial is above it.
    """
    found = [
        (r, values[0])
        for r in ranked(search, records)
        if r.outcome == "finished" and (values := search.values(r))
    ]
    found = [(r, value) for r, value in found if search.method(r) == search.method(found[0][0])]
    zero_shot = search.values(zero_shot_record(search.zero_shot))
    if found and zero_shot and found[0][1] > zero_shot[0]:
        least = 2 * zero_shot[0] - found[0][1]
        found = [(r, value) for r, value in found if value >= least]
    trials = [record for record, _ in found]
    if len(trials) > _MOST:
        points = coordinates(search, trials)
        nearest = np.square(points - points[0]).sum(axis=1).argsort(kind="stable")
        trials = [trials[index] for index in nearest[:_MOST]]
    return trials


def coordinates(search: SearchRecord, trials: Sequence[TrialRecord]) -> np.ndarray:
    """Hyperparameters of trials of one method, (trials, dimensions), on the scales of the space.

    A range of the space is 0 to 1. A choice has a dimension for each of its values.
    """
    part = search.spaces.get(search.method(trials[0])) or search.spaces.get(None)
    columns: list[list[float]] = []
    for key, parameter in part.parameters.items() if part else ():
        values = [record.params[key] for record in trials]
        if isinstance(parameter, Categorical):
            columns += [[float(value == of) for value in values] for of in parameter.choices]
        else:
            columns.append([parameter.unit(float(value)) for value in values])
    varied = [column for column in columns if len({*column}) > 1]
    return np.array(varied).T.reshape(len(trials), len(varied))


def smoothed(points: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    """The expected values (n,), without noise, of a smooth function at points (n, d).

    A Gaussian process with a constant mean, a Matérn kernel of 5/2 with a length for each
    dimension, and noise. Lengths and noise are averaged over log-uniform priors, weighted by their
    marginal likelihood: few trials do not tell noise from short lengths. Few draws of the priors
    explain many trials, so draws are concentrated round by round (adaptive importance sampling with
    a beta distribution for each dimension).

    Returns:
        The values, and the effective number of draws, (sum of weights)^2 / sum of their squares.
    """
    if np.ptp(values) == 0:
        return values, float(_ROUNDS[-1])
    from scipy.special import betaln  # slow to import

    spread, rng = values.std(), np.random.default_rng(0)
    centred = (values - values.mean()) / spread
    ranges = np.log([*[_LENGTHS] * points.shape[1], _NOISE])  # (d + 1, 2)
    low, size = ranges[:, 0], np.diff(ranges)[:, 0]
    alpha, beta = np.ones(len(low)), np.ones(len(low))
    for draws in _ROUNDS:
        units = rng.beta(alpha, beta, (draws, len(low)))
        of_prior = round(_OF_PRIOR * draws)
        units[:of_prior] = rng.random((of_prior, len(low)))
        units = units.clip(1e-9, 1 - 1e-9)
        density = (alpha - 1) * np.log(units) + (beta - 1) * np.log1p(-units) - betaln(alpha, beta)
        mixed = np.log(1 - _OF_PRIOR) + density.sum(axis=1)
        likelihoods, means = posterior(points, centred, np.exp(low + size * units))
        merits = likelihoods - np.logaddexp(np.log(_OF_PRIOR), mixed)
        # The weights of many draws, so flattened that enough of them count.
        powers = 0.8 ** np.arange(60)
        flat = next(p * merits for p in powers if effective_number(p * merits) >= _KEPT)
        weights = np.exp(flat - flat.max())
        middle = np.average(units, axis=0, weights=weights)
        variance = np.average(np.square(units - middle), axis=0, weights=weights)
        concentration = np.maximum(middle * (1 - middle) / variance - 1, 1.0)
        alpha = np.maximum(middle * concentration, 0.3)
        beta = np.maximum((1 - middle) * concentration, 0.3)
    weights = np.exp(merits - merits.max())
    expected = np.average(means, axis=0, weights=weights)
    return values.mean() + spread * expected, effective_number(merits)


def effective_number(merits: np.ndarray) -> float:
    """How many equal draws are worth as much as draws with these logarithms of weights."""
    weights = np.exp(merits - merits.max())
    return float(weights.sum() ** 2 / np.square(weights).sum())


def posterior(
    points: np.ndarray, centred: np.ndarray, draws: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log marginal likelihood (m,) and expected values (m, n) of a process for each draw.

    The variance of the process is integrated out (an inverse gamma prior, worth two values).

    Args:
        points: (n, d).
        centred: values (n,) with mean 0 and variance 1.
        draws: (m, d + 1), the lengths and the share of the noise.
    """
    count = len(points)
    squares = np.square(points[:, None] - points)  # (n, n, d)
    likelihoods, means = [], []
    for part in np.array_split(draws, max(1, len(draws) // 200)):
        lengths, shares = part[:, :-1], part[:, -1]
        distances = np.moveaxis(np.sqrt(5 * squares @ (lengths**-2).T), -1, 0)
        smooth = (1 + distances + distances**2 / 3) * np.exp(-distances)
        smooth += 4  # the constant mean, whose deviation is twice that of the process
        covariances = smooth + shares[:, None, None] * np.eye(count)
        right = np.tile(centred[:, None], (len(part), 1, 1))
        solved = np.linalg.solve(covariances, right)[..., 0]
        shape, rates = 1 + count / 2, (1 + solved @ centred) / 2  # of the variance, inverse gamma
        likelihoods.append(-np.linalg.slogdet(covariances)[1] / 2 - shape * np.log(rates))
        means.append((smooth @ solved[..., None])[..., 0])
    return np.concatenate(likelihoods), np.concatenate(means)
