import math

import numpy as np
import pytest
import torch

from tests.trainers import measures_by_hand as by_hand
from trainers.evaluation.domain_sums import DomainSums

NONE = torch.zeros(0)


def sums_of(logits, labels):
    return DomainSums.of(torch.as_tensor(logits), torch.as_tensor(labels), NONE, NONE)


def test_nll_and_ece_are_those_by_hand():
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal((90, 6)) * 2.5).astype(np.float32)
    labels = np.array([rng.choice(6, p=row) for row in by_hand.probabilities(logits / 2)])
    found = sums_of(logits, labels).measures()
    assert found == pytest.approx(by_hand.measures(logits, labels), rel=1e-5)


def test_certainty_is_in_the_last_bin():
    sums = sums_of([[500.0, 0.0], [500.0, 0.0]], [0, 1])
    assert sums.gaps.tolist() == [0.0] * 14 + [-1.0]
    assert float(sums.nll) == 500


def test_a_likelihood_that_is_no_number_stays_visible():
    measures = sums_of([[math.nan, 1.0]], [0]).measures()
    assert math.isnan(measures["nll"])
    assert math.isnan(measures["ece"])
