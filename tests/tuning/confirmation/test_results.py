"""Means and intervals, compared with those of scipy's tests."""

import math

import numpy as np
import pytest
import scipy.stats

from tuning.confirmation.results import CONFIDENCE, estimate, paired_difference


@pytest.mark.parametrize("number", [2, 5, 30])
def test_intervals_agree_with_scipys_tests(number):
    rng = np.random.default_rng(number)
    ours, its = rng.normal(60, 2, number), rng.normal(59, 2, number)
    found = estimate(ours.tolist())
    expected = scipy.stats.ttest_1samp(ours, 0).confidence_interval(CONFIDENCE)
    assert found.mean == pytest.approx(ours.mean())
    assert found.sd == pytest.approx(ours.std(ddof=1))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    paired = paired_difference(dict(enumerate(ours)), dict(enumerate(its)))
    expected = scipy.stats.ttest_rel(ours, its).confidence_interval(CONFIDENCE)
    assert paired.sd == pytest.approx((ours - its).std(ddof=1))
    assert (paired.low, paired.high) == pytest.approx((expected.low, expected.high))


def test_only_seeds_that_both_have_are_paired():
    found = paired_difference({1: 10.0, 2: 20.0, 3: 99.0}, {2: 18.0, 1: 9.0, 4: 0.0})
    assert found.mean == pytest.approx(1.5)
    assert found.sd == pytest.approx(0.5**0.5)  # of two differences, 1 and 2
    with pytest.raises(ValueError, match="at least one"):
        paired_difference({1: 1.0}, {2: 1.0})


def test_one_seed_has_a_mean_and_no_interval():
    found = estimate([61.0])
    assert found.mean == 61.0
    assert all(map(math.isnan, (found.sd, found.low, found.high)))
