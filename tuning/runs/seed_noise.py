"""How much a metric varies between seeds, told from trials that have one seed each.

Trials with similar hyperparameters differ by their hyperparameters, which act smoothly, and by
chance. A Gaussian process through the trials tells the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from tuning.runs.ranking import by_objectives, finished_trials, spread_between_seeds
from tuning.runs.records import SearchRecord, TrialRecord

_LEAST_TRIALS: Final = 5
_MOST_TRIALS: Final = 30
_LEADING: Final = 2 / 3
"""Share of the trials that are looked at, the best ones: others may have collapsed."""
_WORTH: Final = 4
"""Repeats that the process counts for."""
_DRAWS: Final = 200
_LENGTHS: Final = (0.15, 5.0)
"""Of the process, as shares of the range that the trials span."""
_NOISE: Final = (0.02, 3.0)
"""Variance of the noise, as a share of that of the process."""


def deviation_between_seeds(
    search: SearchRecord, records: Sequence[TrialRecord], metric: str
) -> float | None:
    """Standard deviation of a metric between seeds, in its unit.

    It is the noise of a Gaussian process through the best trials of the method that is ahead,
    pooled with the deviation of repeated trials, for which the process counts as four repeats. None
    without repeats and with fewer than five such trials.
    """
    repeated, freedom = spread_between_seeds(records, metric)
    trials = [r for r in finished_trials(records) if r.last(metric) is not None]
    ahead = by_objectives(search, trials)
    of_method = [r for r in ahead if search.method(r) == search.method(ahead[0])]
    if len(of_method) < _LEAST_TRIALS:
        return repeated if freedom else None
    number = max(_LEAST_TRIALS, math.ceil(_LEADING * len(of_method)))
    leading = of_method[: min(number, _MOST_TRIALS)]
    modelled = noise(coordinates(leading), np.array([r.last(metric) for r in leading]))
    squares = _WORTH * modelled**2 + freedom * repeated**2
    return math.sqrt(squares / (_WORTH + freedom))


def coordinates(trials: Sequence[TrialRecord]) -> np.ndarray:
    """Hyperparameters of trials, (trials, dimensions), each with a range of 0 to 1.

    A number whose values are positive and span a decade counts by its logarithm. A choice has a
    dimension for each value.
    """
    columns: list[np.ndarray] = []
    for key in trials[0].params:
        values = [record.params.get(key) for record in trials]
        if all(type(value) in (int, float) for value in values):
            column = np.array(values, float)
            if column.min() > 0 and column.max() >= 10 * column.min():
                column = np.log(column)
            span = np.ptp(column)
            columns += [(column - column.min()) / span] if span > 0 else []
        elif len(kinds := sorted(set(map(str, values)))) > 1:
            columns += [np.array([str(value) == kind for value in values], float) for kind in kinds]
    return np.stack(columns, axis=1) if columns else np.zeros((len(trials), 0))


def noise(points: np.ndarray, values: np.ndarray) -> float:
    """Standard deviation of the noise in values (n,) of a smooth function at points (n, d).

    The expectation under a Gaussian process with a constant mean, a Matérn kernel of 5/2 with a
    length for each dimension, and noise. Lengths and noise are drawn from log-uniform priors and
    weighted by their marginal likelihood, in which the variance of the process is integrated out
    (an inverse gamma prior, worth two values). So few trials, which do not tell noise from short
    lengths, give a deviation between the two.
    """
    spread = values.std()
    if spread == 0:
        return 0.0
    (count, dimensions), rng = points.shape, np.random.default_rng(0)
    centred = (values - values.mean()) / spread
    lengths = np.exp(rng.uniform(*np.log(_LENGTHS), (_DRAWS, dimensions)))
    shares = np.exp(rng.uniform(*np.log(_NOISE), _DRAWS))
    steps = (points[:, None] - points)[None] / lengths[:, None, None]
    distances = math.sqrt(5) * np.sqrt(np.square(steps).sum(axis=-1))  # (draws, n, n)
    covariances = (1 + distances + distances**2 / 3) * np.exp(-distances)
    # The constant mean, whose deviation is twice that of the process.
    covariances += 4 + shares[:, None, None] * np.eye(count)
    solved = np.linalg.solve(covariances, np.tile(centred[:, None], (_DRAWS, 1, 1)))[..., 0]
    shape, rate = 1 + count / 2, (1 + solved @ centred) / 2  # of the variance, inverse gamma
    likelihoods = -np.linalg.slogdet(covariances)[1] / 2 - shape * np.log(rate)
    weights = np.exp(likelihoods - likelihoods.max())
    variance = np.average(shares * rate / (shape - 1), weights=weights)
    return float(spread * math.sqrt(variance))
