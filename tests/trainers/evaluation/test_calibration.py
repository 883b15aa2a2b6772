import json
import math

import numpy as np
import pytest
import torch

from tests.trainers import measures_by_hand as by_hand
from trainers.evaluation.calibration import (
    TEMPERATURES,
    UNSCALED,
    best_temperature,
    calibration_error,
    calibration_sums,
    temperature_index,
)


def drawn(true_temperature, number=800):
    """Logits (N, 6) float32, and labels that are calibrated at that temperature."""
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal((number, 6)) * 2.5).astype(np.float32)
    p = by_hand.probabilities(logits, true_temperature)
    return logits, np.array([rng.choice(6, p=row) for row in p])


@pytest.mark.parametrize("column", [0, 17, UNSCALED, 40, 48])
def test_nll_and_ece_are_those_of_the_divided_logits(column):
    logits, labels = drawn(2.0, 90)
    nll, gaps = calibration_sums(torch.tensor(logits), torch.tensor(labels))
    assert nll.dtype == gaps.dtype == torch.float64
    t = TEMPERATURES[column]
    assert float(nll[column]) / 90 == pytest.approx(by_hand.nll(logits, labels, t), rel=1e-5)
    error = calibration_error(gaps[column], 90)
    assert error == pytest.approx(by_hand.ece(logits, labels, t), rel=1e-5)


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_the_optimum_up_to_the_grid(true_temperature):
    logits, labels = drawn(true_temperature)
    nll, _ = calibration_sums(torch.tensor(logits), torch.tensor(labels))
    found, optimum = best_temperature(nll), by_hand.fitted_temperature(logits, labels)
    assert optimum == pytest.approx(true_temperature, rel=0.2)
    assert abs(math.log2(found / optimum)) < 1 / 8
    best = by_hand.nll(logits, labels, optimum)
    assert float(nll[temperature_index(found)]) / 800 == pytest.approx(best, rel=2e-3)


def test_the_grid_has_1_and_every_temperature_survives_a_report():
    assert (TEMPERATURES[0], TEMPERATURES[UNSCALED], TEMPERATURES[-1]) == (1 / 8, 1.0, 8.0)
    written = json.loads(json.dumps(TEMPERATURES))
    assert [temperature_index(t) for t in written] == list(range(49))


def test_certainty_is_in_the_last_bin():
    logits, labels = torch.tensor([[500.0, 0.0], [500.0, 0.0]]), torch.tensor([0, 1])
    nll, gaps = calibration_sums(logits, labels)
    assert gaps[UNSCALED].tolist() == [0.0] * 14 + [-1.0]
    assert float(nll[UNSCALED]) == 500


def test_nothing_is_fitted_where_no_likelihood_is_a_number():
    nll, gaps = calibration_sums(torch.tensor([[math.nan, 1.0]]), torch.tensor([0]))
    assert math.isnan(calibration_error(gaps[UNSCALED], 1))
    assert best_temperature(nll) == 1.0
    nll[:30] = torch.arange(30)
    assert best_temperature(nll) == TEMPERATURES[0]
