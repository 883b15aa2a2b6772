import math

import numpy as np
import pytest
import torch

from tests.trainers import measures_by_hand as by_hand
from trainers.evaluation.domain_sums import TEMPERATURES, UNSCALED, DomainSums

NONE = torch.zeros(0)


def drawn(true_temperature, number=800):
    """Logits (N, 6) float32, and labels that are calibrated at that temperature."""
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal((number, 6)) * 2.5).astype(np.float32)
    p = by_hand.probabilities(logits, true_temperature)
    return logits, np.array([rng.choice(6, p=row) for row in p])


def sums_of(logits, labels):
    return DomainSums.of(torch.as_tensor(logits), torch.as_tensor(labels), NONE, NONE)


@pytest.mark.parametrize("column", [0, 17, UNSCALED, 40, 48])
def test_nll_and_ece_are_those_of_the_divided_logits(column):
    logits, labels = drawn(2.0, 90)
    sums, t = sums_of(logits, labels), TEMPERATURES[column]
    assert float(sums.nll[column]) / 90 == pytest.approx(by_hand.nll(logits, labels, t), rel=1e-5)
    error = by_hand.ece(logits, labels, t)
    assert sums.measures(t)["ece_scaled"] == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_the_optimum_up_to_the_grid(true_temperature):
    logits, labels = drawn(true_temperature)
    optimum = by_hand.fitted_temperature(logits, labels)
    assert optimum == pytest.approx(true_temperature, rel=0.2)
    assert abs(math.log2(sums_of(logits, labels).temperature / optimum)) < 1 / 8


def test_certainty_is_in_the_last_bin():
    sums = sums_of([[500.0, 0.0], [500.0, 0.0]], [0, 1])
    assert sums.gaps[UNSCALED].tolist() == [0.0] * 14 + [-1.0]
    assert float(sums.nll[UNSCALED]) == 500


def test_nothing_is_fitted_where_no_likelihood_is_a_number():
    sums = sums_of([[math.nan, 1.0]], [0])
    assert math.isnan(sums.measures()["ece"])
    assert sums.temperature == 1.0
    sums.nll[:30] = torch.arange(30)
    assert sums.temperature == TEMPERATURES[0]
