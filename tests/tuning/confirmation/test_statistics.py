"""Means and intervals, against scipy, numpy, and a textbook."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import scipy.stats

from tuning.confirmation.statistics import difference, estimate, paired_difference

# Student (Biometrika, 1908): hours of sleep gained by ten patients, with each of two drugs.
SLEEP_1 = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
SLEEP_2 = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)


def by_seed(values: tuple[float, ...]) -> dict[int, float]:
    return dict(enumerate(values, 1000))


def test_students_own_example_of_paired_differences() -> None:
    found = paired_difference(by_seed(SLEEP_2), by_seed(SLEEP_1))
    assert found.mean == pytest.approx(1.58)
    assert found.sd == pytest.approx(1.23, abs=0.005)
    # As R prints it: t.test(extra ~ group, data = sleep, paired = TRUE)
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-7)
    assert found.excludes_zero


@pytest.mark.parametrize("number", [2, 3, 5, 30])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_an_interval_is_that_of_scipy(number: int, confidence: float) -> None:
    rng = random.Random(number)
    values = [rng.gauss(60, 2) for _ in range(number)]
    found = estimate(values, confidence)
    expected = scipy.stats.t.interval(
        confidence, number - 1, loc=np.mean(values), scale=scipy.stats.sem(values)
    )
    assert found.number == number
    assert found.mean == pytest.approx(np.mean(values))
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    assert (found.low, found.high) == pytest.approx(expected)


def test_a_paired_interval_is_that_of_scipys_paired_test() -> None:
    rng = np.random.default_rng(0)
    ours, its = rng.normal(60, 2, 6), rng.normal(59, 2, 6)
    found = paired_difference(by_seed(tuple(ours)), by_seed(tuple(its)))
    expected = scipy.stats.ttest_rel(ours, its).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_luck_that_both_share_does_not_widen_a_paired_interval() -> None:
    luck = {1000: -5.0, 1001: 0.0, 1002: 7.0}
    ours, its = ({seed: base + v for seed, v in luck.items()} for base in (61, 60))
    found = paired_difference(ours, its)
    assert (found.mean, found.half_width) == pytest.approx((1.0, 0.0))


def test_only_seeds_that_both_have_are_paired() -> None:
    found = paired_difference({1: 10.0, 2: 20.0, 3: 99.0}, {2: 18.0, 1: 9.0, 4: 0.0})
    assert found.number == 2
    assert found.mean == pytest.approx(1.5)
    with pytest.raises(ValueError, match="no values"):
        paired_difference({1: 1.0}, {2: 1.0})


def test_a_difference_to_a_constant_only_moves_the_mean() -> None:
    values = {1: 60.0, 2: 62.0, 3: 61.5}
    moved, own = difference(values, 50.0), estimate(list(values.values()))
    assert moved.mean == pytest.approx(own.mean - 50)
    assert (moved.sd, moved.half_width) == pytest.approx((own.sd, own.half_width))


def test_one_seed_has_a_mean_and_no_interval() -> None:
    found = estimate([61.0])
    assert found.mean == 61.0
    assert math.isnan(found.sd)
    assert math.isnan(found.half_width)
    assert not found.excludes_zero
