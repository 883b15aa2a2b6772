from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_t

from tests.tuning import fakes
from trainers.evaluation.metrics import OOD_MEAN_ACC
from tuning.config.objectives import Objective, parse_constraint
from tuning.runs import seed_noise
from tuning.runs.seed_noise import coordinates, deviation_between_seeds, expected_value, fit

SEARCH = fakes.search_record(Path("run"))


def smooth(points):
    return 60 - 8 * (points[:, 0] - 0.4) ** 2 + 3 * points[:, 1]


def trials(values, lrs=None):
    lrs = np.geomspace(1e-5, 1e-3, len(values)) if lrs is None else lrs
    return [
        fakes.trial(number, 85.0, value, params={"optim.lr": float(lr)})
        for number, (value, lr) in enumerate(zip(values, lrs, strict=True))
    ]


@pytest.mark.parametrize("deviation", [0.3, 1.0])
def test_noise_around_a_smooth_function_is_told_from_it(deviation):
    rng, found, errors = np.random.default_rng(0), [], []
    for _ in range(20):
        points = rng.uniform(size=(20, 2))
        true = smooth(points)
        values = true + deviation * rng.standard_normal(20)
        noise, means = fit(points, values)
        found.append(noise)
        errors.append([np.square(of - true).mean() for of in (means, values)])
    assert np.exp(np.log(found).mean()) == pytest.approx(deviation, rel=0.25)
    of_means, of_values = np.mean(errors, axis=0)
    assert of_means < 0.6 * of_values


def test_kernels_are_weighted_by_their_marginal_likelihood(monkeypatch):
    """Which is that of a multivariate t distribution."""
    monkeypatch.setattr(seed_noise, "_DRAWS", 7)
    rng = np.random.default_rng(1)
    points, values = rng.uniform(size=(6, 2)), rng.standard_normal(6)
    scaled = (values - values.mean()) / values.std()
    draws = np.random.default_rng(0)
    lengths = np.exp(draws.uniform(np.log(0.15), np.log(5), (7, 2)))
    shares = np.exp(draws.uniform(np.log(0.02), np.log(3), 7))
    weights, variances, means = [], [], []
    for length, share in zip(lengths, shares, strict=True):
        r = np.sqrt(5) * cdist(points / length, points / length)
        covariance = (1 + r + r**2 / 3) * np.exp(-r) + 4 + share * np.eye(6)
        weights.append(multivariate_t.pdf(scaled, shape=covariance / 2, df=2))
        # The mean of an inverse gamma distribution with its parameters after six values.
        rate = 0.5 + scaled @ np.linalg.inv(covariance) @ scaled / 2
        variances.append(share * rate / (1 + 6 / 2 - 1))
        # What the noise leaves of the values.
        means.append(scaled - share * np.linalg.inv(covariance) @ scaled)
    noise, found = fit(points, values)
    assert noise == pytest.approx(values.std() * np.sqrt(np.average(variances, weights=weights)))
    expected = values.mean() + values.std() * np.average(means, axis=0, weights=weights)
    assert found == pytest.approx(expected)


def test_a_metric_that_does_not_vary_has_no_noise():
    noise, means = fit(np.random.default_rng(0).uniform(size=(6, 2)), np.full(6, 70.0))
    assert noise == 0
    assert (means == 70).all()


def test_numbers_over_a_decade_count_by_their_logarithm_and_choices_by_equality():
    params = [
        {"lr": 1e-5, "decay": 0.1, "weight": 0, "length": 8, "loss": "a"},
        {"lr": 1e-4, "decay": 0.3, "weight": 0.1, "length": 8, "loss": "b"},
        {"lr": 1e-3, "decay": 0.2, "weight": 10, "length": 8, "loss": "b"},
    ]
    found = coordinates([fakes.trial(n, params=of) for n, of in enumerate(params)])
    assert found == pytest.approx(
        np.array([[0, 0, 0, 1, 0], [0.5, 1, 1 / 3, 0, 1], [1, 0.5, 1, 0, 1]])
    )


def test_few_trials_tell_nothing():
    assert deviation_between_seeds(SEARCH, trials([60.0, 61.0, 59.0, 62.0]), OOD_MEAN_ACC) is None


def test_the_trials_around_the_best_one_tell_its_luck():
    """Of many, the best ones alone would all be lucky."""
    rng, points = np.random.default_rng(0), np.geomspace(1e-5, 1e-3, 120)
    of = trials(62 + rng.standard_normal(120), rng.permutation(points))
    assert abs(expected_value(SEARCH, of) - (85 + 62) / 2) < 0.25  # half of the noise counts
    assert deviation_between_seeds(SEARCH, of, OOD_MEAN_ACC) == pytest.approx(1, rel=0.25)


def test_where_most_trials_collapsed_nothing_is_told():
    of = trials([62.0, 63.0, 61.0, 62.5, *[5.0 + n for n in range(8)]])
    assert deviation_between_seeds(SEARCH, of, OOD_MEAN_ACC) is None
    of = trials([62.0, 63.0, 61.0, 62.5, 61.5, *[5.0 + n for n in range(8)]])
    assert deviation_between_seeds(SEARCH, of, OOD_MEAN_ACC) < 2


def test_equal_trials_tell_nothing():
    assert deviation_between_seeds(SEARCH, trials([62.0] * 6), OOD_MEAN_ACC) is None


def test_the_method_of_the_best_trial_within_the_constraints_counts():
    within = [replace(r, params={**r.params, "method.name": "ft"}) for r in trials([62.0, 63] * 3)]
    beyond = [
        fakes.trial(9 + n, 50.0, 90.0 + 3 * n, params={"method.name": "kd", "optim.lr": 1e-5})
        for n in range(6)
    ]
    search = replace(SEARCH, constraints=(parse_constraint("id_val/acc >= 80", SEARCH.zero_shot),))
    alone = deviation_between_seeds(search, within, OOD_MEAN_ACC)
    assert deviation_between_seeds(search, [*within, *beyond], OOD_MEAN_ACC) == alone


def test_trials_that_collapsed_are_no_noise():
    rng = np.random.default_rng(0)
    good = 60 + 0.5 * rng.standard_normal(12)
    both = np.concatenate([good, [20.0, 35.0, 12.0, 28.0]])
    found = deviation_between_seeds(SEARCH, trials(both), OOD_MEAN_ACC)
    assert found == pytest.approx(0.5, rel=0.5)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_luckiest_of_equal_trials_is_expected_to_be_like_the_others(mode):
    search = replace(SEARCH, objectives=(Objective(OOD_MEAN_ACC, mode),))
    above = 4 if mode == "max" else -4  # better than the zero-shot model
    values = 61 + above + np.random.default_rng(0).standard_normal(12)
    of = trials(values, np.random.default_rng(1).permutation(np.geomspace(1e-5, 1e-3, 12)))
    best = of[(values.argmax if mode == "max" else values.argmin)()]
    found = expected_value(search, of)
    assert abs(found - values.mean()) < 0.5 * abs(best.last(OOD_MEAN_ACC) - values.mean())
    assert expected_value(search, of[:9]) is None


def test_of_a_method_that_is_behind_nothing_is_read():
    ahead = trials([60.0, 61.0, 60.0, 61.0, 60.0, 61.0])
    ahead = [replace(r, params={**r.params, "method.name": "ft"}) for r in ahead]
    behind = [
        fakes.trial(9 + n, 70.0, 30.0 + 9 * n, params={"method.name": "kd", "optim.lr": 1e-5})
        for n in range(6)
    ]
    alone, both = (
        deviation_between_seeds(SEARCH, records, OOD_MEAN_ACC)
        for records in (ahead, [*ahead, *behind])
    )
    assert both == alone
