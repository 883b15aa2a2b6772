import numpy as np
import pytest
import torch

from tests.trainers import measures_by_hand as by_hand
from trainers.evaluation.accumulators import DomainSums
from trainers.evaluation.metrics import MEASURES

NONE = torch.zeros(0)


@pytest.fixture
def logits():
    return np.random.default_rng(1).standard_normal((60, 6)) * 3


@pytest.fixture
def labels():
    """Of classes 0, 2, 3 and 5 in unequal numbers; 1 and 4 do not occur."""
    return np.random.default_rng(2).choice([0, 0, 0, 2, 3, 3, 5], size=60)


def summed(logits, labels, shares):
    sums = DomainSums.zeros(logits.shape[1])
    parts = zip(torch.tensor(logits).split(shares), torch.tensor(labels).split(shares), strict=True)
    for x, y in parts:
        sums += DomainSums.of(x, y, NONE, NONE)
    return sums


@pytest.mark.parametrize("shares", [[60], [13, 47], [1, 0, 59]])
def test_measures_equal_those_by_hand_for_any_shares(logits, labels, shares):
    sums = summed(logits, labels, shares)
    temperature = sums.temperature
    assert temperature > 1.5  # random labels: any confidence is too much
    expected = by_hand.measures(logits, labels, temperature)
    assert sums.measures(temperature) == pytest.approx(expected, rel=1e-9)
    assert sums.number == 60


def test_drift_is_a_mean_over_all_compared_images():
    logits, labels = torch.eye(3)[:2], torch.tensor([0, 1])
    gaps, distortions = torch.tensor([4.0, 1.0, 1.0]), torch.tensor([0.3, 0.0, 0.6])
    sums = DomainSums.of(logits, labels, gaps, distortions)
    nobody = DomainSums.of(torch.zeros(0, 3), labels[:0], torch.tensor([6.0]), torch.tensor([0.5]))
    measures = (sums + nobody).measures(1.0)
    assert measures["acc"] == 100
    assert measures["energy_gap"] == 3
    assert measures["feature_distortion"] == pytest.approx(0.35)
    assert tuple(measures) == MEASURES


def test_what_was_not_asked_for_is_absent(logits, labels):
    assert tuple(summed(logits, labels, [60]).measures()) == ("acc", "class_acc", "nll", "ece")
