"""What new seeds would change, told from trials that have one seed each.

Trials with similar hyperparameters differ by their hyperparameters, which act smoothly, and by
chance. A Gaussian process through the trials tells the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from tuning.runs.ranking import ranked
from tuning.runs.records import SearchRecord, TrialRecord, zero_shot_record

_LEAST: Final = 5
"""Trials without which nothing is said of the deviation."""
_LEAST_EXPECTED: Final = 10
"""Trials without which nothing is said of a single one: the means of fewer are too low."""
_MOST: Final = 50
"""Those nearest to the best trial, where the deviation matters."""
_DRAWS: Final = 200
_LENGTHS: Final = (0.15, 5.0)
"""Of the process, as shares of the range that the trials span."""
_NOISE: Final = (0.02, 3.0)
"""Variance of the noise, as a share of that of the process."""


def deviation_between_seeds(
    search: SearchRecord, records: Sequence[TrialRecord], metric: str
) -> float | None:
    """Standard deviation of a metric between seeds, in its unit.

    It is the noise of a Gaussian process through the trials of the best trial's method. None with
    fewer than five such trials, and where they do not differ.

    Args:
        metric: the better, the higher.
    """
    trials = _around_best(search, records, metric)
    if len(trials) < _LEAST:
        return None
    deviation, _ = fit(coordinates(trials), _raised(trials, metric))
    return deviation or None


def expected_value(search: SearchRecord, records: Sequence[TrialRecord]) -> float | None:
    """What the first objective of the best trial is expected to be with a new seed.

    It is the mean of the Gaussian process there. None with fewer than ten trials.
    """
    objective = search.objectives[0]
    trials = _around_best(search, records, objective.metric)
    if len(trials) < _LEAST_EXPECTED:
        return None
    sign = objective.signed(1.0)
    _, means = fit(coordinates(trials), _raised(trials, objective.metric, sign))
    return sign * float(means[0])


def _around_best(
    search: SearchRecord, records: Sequence[TrialRecord], metric: str
) -> list[TrialRecord]:
    """The best trial and those of its method nearest to it, without those that collapsed.

    These are farther below the zero-shot model than the best trial is above it.
    """
    found = [
        (r, values[0])
        for r in ranked(search, records)
        if r.outcome == "finished" and (values := search.values(r)) and r.last(metric) is not None
    ]
    found = [(r, value) for r, value in found if search.method(r) == search.method(found[0][0])]
    zero_shot = search.values(zero_shot_record(search.zero_shot))
    if found and zero_shot and found[0][1] > zero_shot[0]:
        least = 2 * zero_shot[0] - found[0][1]
        found = [(r, value) for r, value in found if value >= least]
    trials = [record for record, _ in found]
    if len(trials) > _MOST:
        points = coordinates(trials)
        nearest = np.square(points - points[0]).sum(axis=1).argsort(kind="stable")
        trials = [trials[index] for index in nearest[:_MOST]]
    return trials


def _raised(trials: Sequence[TrialRecord], metric: str, sign: float = 1.0) -> np.ndarray:
    """Values (n,), the better, the higher, in which bad trainings are not so bad.

    They are at most twice as far below the median as the best one is above it.
    """
    values = sign * np.array([record.last(metric) for record in trials], float)
    median = np.median(values)
    return np.maximum(values, median - 2 * (values.max() - median))


def coordinates(trials: Sequence[TrialRecord]) -> np.ndarray:
    """Hyperparameters of trials, (trials, dimensions), each with a range of 0 to 1.

    A number whose positive values span a decade counts by its logarithm, and 0 as a tenth of the
    least. A choice has a dimension for each value.
    """
    columns: list[np.ndarray] = []
    for key in trials[0].params:
        values = [record.params.get(key) for record in trials]
        if all(type(value) in (int, float) for value in values):
            column = np.array(values, float)
            least = column[column > 0].min(initial=np.inf)
            if column.min() >= 0 and column.max() >= 10 * least:
                column = np.log(np.maximum(column, least / 10))
            span = np.ptp(column)
            columns += [(column - column.min()) / span] if span > 0 else []
        elif len(kinds := sorted(set(map(str, values)))) > 1:
            columns += [np.array([str(value) == kind for value in values], float) for kind in kinds]
    return np.stack(columns, axis=1) if columns else np.zeros((len(trials), 0))


def fit(points: np.ndarray, values: np.ndarray) -> tuple[float, np.ndarray]:
    """Noise in values (n,) of a smooth function at points (n, d), and the function there.

    A Gaussian process with a constant mean, a Matérn kernel of 5/2 with a length for each
    dimension, and noise. Lengths and noise are drawn from log-uniform priors and weighted by their
    marginal likelihood, in which the variance of the process is integrated out (an inverse gamma
    prior, worth two values). So few trials, which do not tell noise from short lengths, give a
    deviation between the two.

    Returns:
        Standard deviation of the noise, and the expected values without noise (n,).
    """
    spread = values.std()
    if spread == 0:
        return 0.0, values
    (count, dimensions), rng = points.shape, np.random.default_rng(0)
    centred = (values - values.mean()) / spread
    (short, long), (least, most) = np.log(_LENGTHS), np.log(_NOISE)
    lengths = np.exp(rng.uniform(short, long, (_DRAWS, dimensions)))
    shares = np.exp(rng.uniform(least, most, _DRAWS))
    squares = np.square(points[:, None] - points) @ (lengths**-2).T  # (n, n, draws)
    distances = np.moveaxis(np.sqrt(5 * squares), -1, 0)
    smooth = (1 + distances + distances**2 / 3) * np.exp(-distances)
    smooth += 4  # the constant mean, whose deviation is twice that of the process
    covariances = smooth + shares[:, None, None] * np.eye(count)
    solved = np.linalg.solve(covariances, np.tile(centred[:, None], (_DRAWS, 1, 1)))[..., 0]
    shape, rate = 1 + count / 2, (1 + solved @ centred) / 2  # of the variance, inverse gamma
    likelihoods = -np.linalg.slogdet(covariances)[1] / 2 - shape * np.log(rate)
    weights = np.exp(likelihoods - likelihoods.max())
    variance = np.average(shares * rate / (shape - 1), weights=weights)
    means = np.average((smooth @ solved[..., None])[..., 0], axis=0, weights=weights)
    return float(spread * math.sqrt(variance)), values.mean() + spread * means
