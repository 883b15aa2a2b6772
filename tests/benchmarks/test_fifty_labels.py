"""The replay of labels: its estimates, and the rule of Model Selector."""

import numpy as np
import pytest
from scipy.stats import entropy

from tests.benchmarks.fifty_labels import (
    ACTIVE,
    EPSILON,
    SELECTOR,
    Images,
    answers,
    estimates,
    label,
    scores,
)

CLASSES, CANDIDATES = 5, 4


def made_up(images, seed):
    """Candidates that are right on half of the images; they all agree on a third of these."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=images)
    guesses = rng.integers(CLASSES, size=(CANDIDATES, images))
    guesses[:, : images // 3] = guesses[0, : images // 3]
    right = rng.random((CANDIDATES, images)) < np.linspace(0.2, 0.6, CANDIDATES)[:, None]
    right[:, : images // 3] = right[0, : images // 3]
    return Images(labels, np.where(right, labels, guesses))


def differences(images):
    """Accuracies on all images, less that of the first candidate."""
    right = [
        sum(int(answer == label) for answer, label in zip(of, images.label, strict=True))
        for of in images.predicted
    ]
    return np.array([count - right[0] for count in right]) / len(images.label)


def test_active_differences_have_no_bias():
    of, draws = made_up(30, seed=0), 20_000
    pool = np.ones((draws, 30), dtype=bool)
    [steps] = label(ACTIVE, [of], [pool], 8, np.random.default_rng(0))
    found = estimates(of, pool & of.differ, pool, *steps)
    found -= found[:, :1]
    error = found.std(axis=0)[1:] / draws**0.5
    assert (abs(found.mean(axis=0) - differences(of))[1:] < 4 * error).all()
    plain = of.correct[:, steps[0]].mean(axis=(1, 2)) * of.differ.mean()
    assert (abs(plain - plain[0] - differences(of))[1:] > 20 * error).any()


@pytest.mark.parametrize("rule", [ACTIVE, SELECTOR])
def test_all_labels_give_the_differences_of_the_pool(rule):
    domains = [made_up(12, seed=1), made_up(24, seed=2)]
    pools = [np.ones((3, len(of.label)), dtype=bool) for of in domains]
    labelled = label(rule, domains, pools, 60, np.random.default_rng(0))
    for of, pool, steps in zip(domains, pools, labelled, strict=True):
        found = estimates(of, pool & of.differ, pool, *steps)
        assert found - found[:, :1] == pytest.approx(np.tile(differences(of), (3, 1)))


def test_the_selector_wants_the_least_expected_entropy():
    of, belief = made_up(30, seed=3), np.array([0.1, 0.2, 0.3, 0.4])
    expected = []
    for predicted in of.predicted.T:
        right = predicted == np.arange(CLASSES)[:, None]
        after = belief * np.where(right, (1 - EPSILON) / EPSILON, 1)
        expected.append(np.mean([entropy(row / row.sum()) for row in after]))
    wanted = scores(SELECTOR, *answers(of.predicted), belief[:, None])[:, 0]
    assert wanted == pytest.approx(CLASSES * (entropy(belief) - np.array(expected)))
