import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_t

from search_spaces.distributions import Categorical, Float
from search_spaces.space import SearchSpace
from tests.tuning import fakes
from trainers.evaluation.metrics import OOD_MEAN_ACC
from tuning.config.objectives import Objective, parse_constraint
from tuning.runs import seed_noise
from tuning.runs.seed_noise import (
    coordinates,
    effective_number,
    expected_value,
    posterior,
    smoothed,
)

LR = Float(low=1e-6, high=1e-2, log=True)
SPACE = SearchSpace(parameters={"optim.lr": LR})
SEARCH = replace(fakes.search_record(Path("run")), spaces={None: SPACE})


def smooth(points):
    return 60 - 8 * (points[:, 0] - 0.4) ** 2 + 3 * points[:, 1]


def trials(values, lrs=None):
    lrs = np.geomspace(1e-5, 1e-3, len(values)) if lrs is None else lrs
    return [
        fakes.trial(number, 85.0, value, params={"optim.lr": float(lr)})
        for number, (value, lr) in enumerate(zip(values, lrs, strict=True))
    ]


def test_draws_are_weighted_by_their_marginal_likelihood():
    """Which is that of a multivariate t distribution."""
    rng = np.random.default_rng(1)
    points, values = rng.uniform(size=(6, 2)), rng.standard_normal(6)
    scaled = (values - values.mean()) / values.std()
    draws = np.exp(rng.uniform(-2, 1, (7, 3)))
    expected = []
    for *lengths, share in draws:
        r = np.sqrt(5) * cdist(points / lengths, points / lengths)
        covariance = (1 + r + r**2 / 3) * np.exp(-r) + 4 + share * np.eye(6)
        likelihood = multivariate_t.logpdf(scaled, shape=covariance / 2, df=2)
        # What the noise leaves of the values.
        expected.append((likelihood, scaled - share * np.linalg.inv(covariance) @ scaled))
    likelihoods, means = posterior(points, scaled, draws)
    wanted, wanted_means = zip(*expected, strict=True)
    assert likelihoods - likelihoods[0] == pytest.approx(np.array(wanted) - wanted[0])
    assert means == pytest.approx(np.array(wanted_means))


def test_the_average_over_the_draws_is_that_over_the_priors():
    """By very many draws of the priors."""
    rng = np.random.default_rng(2)
    points = rng.uniform(size=(12, 2))
    values = smooth(points) + 0.5 * rng.standard_normal(12)
    centred = (values - values.mean()) / values.std()
    draws = np.exp(rng.uniform(np.log([0.15, 0.15, 0.02]), np.log([5, 5, 3]), (40_000, 3)))
    likelihoods, means = posterior(points, centred, draws)
    assert effective_number(likelihoods) > 500
    average = np.average(means, axis=0, weights=np.exp(likelihoods - likelihoods.max()))
    found, effective = smoothed(points, values)
    assert effective > 50
    assert found == pytest.approx(values.mean() + values.std() * average, abs=0.05)


@pytest.mark.parametrize(("count", "dimensions"), [(20, 3), (50, 4), (50, 9)])
def test_enough_draws_count_and_little_memory_is_used(count, dimensions):
    rng = np.random.default_rng(1)
    points = rng.uniform(size=(count, dimensions))
    values = 70 - 30 * np.square(points[:, :3] - 0.5).sum(axis=1) + rng.standard_normal(count)
    tracemalloc.start()
    _, effective = smoothed(points, values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert effective > 50
    assert peak < 300e6


def test_where_few_draws_count_nothing_is_said(monkeypatch):
    of = trials(62 + np.random.default_rng(0).standard_normal(12))
    assert expected_value(SEARCH, of) is not None
    monkeypatch.setattr(seed_noise, "_LEAST_EFFECTIVE", 1501)
    assert expected_value(SEARCH, of) is None


def test_a_metric_that_does_not_vary_has_no_noise():
    means, _ = smoothed(np.random.default_rng(0).uniform(size=(6, 2)), np.full(6, 70.0))
    assert (means == 70).all()


def test_coordinates_are_those_of_the_space():
    space = SearchSpace(
        parameters={
            "optim.lr": LR,
            "method.alpha": Float(low=0, high=1),
            "method.loss": Categorical(choices=("a", "b", "c")),
            "optim.weight_decay": Float(low=0, high=0.2),
        }
    )
    points = [(1e-6, 0.0, "a", 0.1), (1e-4, 0.01, "b", 0.1), (1e-2, 0.5, "b", 0.1)]
    of = [
        fakes.trial(n, params=dict(zip(space.parameters, point, strict=True)))
        for n, point in enumerate(points)
    ]
    found = coordinates(replace(SEARCH, spaces={None: space}), of)  # equal values: no dimension
    assert found == pytest.approx(np.array([[0, 0, 1, 0], [0.5, 0.01, 0, 1], [1, 0.5, 0, 1]]))


def test_the_trials_around_the_best_one_tell_its_luck():
    """Of many, the best ones alone would all be lucky."""
    rng, points = np.random.default_rng(0), np.geomspace(1e-5, 1e-3, 120)
    of = trials(62 + rng.standard_normal(120), rng.permutation(points))
    assert abs(expected_value(SEARCH, of) - (85 + 62) / 2) < 0.25  # half of the noise counts


def test_where_most_trials_collapsed_nothing_is_told():
    good = [62.0, 63.0, 61.0, 62.5, 61.5, 62.0, 61.0, 60.5, 61.2]
    bad = [5.0 + n for n in range(8)]
    assert expected_value(SEARCH, trials([*good, *bad])) is None
    assert expected_value(SEARCH, trials([*good, 61.3, *bad])) > 72


def test_the_method_of_the_best_trial_within_the_constraints_counts():
    within = [replace(r, params={**r.params, "method.name": "ft"}) for r in trials([62.0, 63] * 6)]
    beyond = [
        fakes.trial(19 + n, 50.0, 90.0 + 3 * n, params={"method.name": "kd", "optim.lr": 1e-5})
        for n in range(6)
    ]
    behind = [
        fakes.trial(29 + n, 81.0, 50.0, params={"method.name": "kd", "optim.lr": 1e-5})
        for n in range(6)
    ]
    search = replace(SEARCH, spaces={"ft": SPACE, "kd": SPACE})
    line = parse_constraint("id_val/acc >= 80", search.zero_shot)
    search = replace(search, constraints=(line,))
    alone = expected_value(search, within)
    assert expected_value(search, [*within, *beyond, *behind]) == alone


def test_the_luckiest_of_equal_trials_is_expected_to_be_like_the_others_where_less_is_better():
    search = replace(SEARCH, objectives=(Objective(OOD_MEAN_ACC, "min"),))
    values = 57 + np.random.default_rng(0).standard_normal(12)  # better than the zero-shot model
    of = trials(values, np.random.default_rng(1).permutation(np.geomspace(1e-5, 1e-3, 12)))
    found = expected_value(search, of)
    assert abs(found - values.mean()) < 0.5 * abs(values.min() - values.mean())
