import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern
from threadpoolctl import threadpool_info

from trainers.process_state import restored_state
from tuning.algorithms.gaussian_process import GaussianProcesses, GuidedProcesses, one_thread


def test_expectation_and_draws_are_those_of_the_weighted_processes():
    rng = np.random.default_rng(1)
    points, elsewhere = rng.uniform(size=(7, 2)), rng.uniform(size=(250, 2))
    scores = 50 + 4 * points[:, 0] + rng.standard_normal(7)
    found = GaussianProcesses(points, scores, np.random.default_rng(0))

    again = np.random.default_rng(0)
    ranges = ((0.05, 20.0, ()), (0.01, 1.0, ()), (0.1, 10.0, (2,)))
    amplitudes, noises, lengths = (
        np.exp(again.uniform(np.log(low), np.log(high), size=(256, *shape)))
        for low, high, shape in ranges
    )
    standard = (scores - scores.mean()) / scores.std()
    processes = [
        GaussianProcessRegressor(
            ConstantKernel(amplitude) * Matern(length, nu=2.5), alpha=noise, optimizer=None
        ).fit(points, standard)
        for amplitude, noise, length in zip(amplitudes, noises, lengths, strict=True)
    ]
    likelihoods = np.array([process.log_marginal_likelihood_value_ for process in processes])
    weights = np.exp(likelihoods) / np.exp(likelihoods).sum()

    def expected(at):
        return scores.mean() + scores.std() * weights @ [p.predict(at) for p in processes]

    assert found.mean(elsewhere) == pytest.approx(expected(elsewhere))
    drawn = found.draw(20_000)
    assert drawn.mean(axis=0) == pytest.approx(expected(points), abs=0.05)
    parts = [process.predict(points, return_cov=True) for process in processes]
    second = sum(w * (np.outer(m, m) + c) for w, (m, c) in zip(weights, parts, strict=True))
    mean = weights @ [m for m, _ in parts]
    covariance = scores.std() ** 2 * (second - np.outer(mean, mean))
    assert np.cov(drawn.T) == pytest.approx(covariance, abs=0.05)


def measured(points, noise, seed=0):
    """Scores with the best one at 0.6."""
    deviations = np.random.default_rng(seed).standard_normal(len(points))
    return -4 * (points[:, 0] - 0.6) ** 2 + noise * deviations


def test_a_guide_finds_the_best_of_noisy_scores():
    points = np.linspace(0, 1, 12)[:, None]
    guide = 3 - (points[:, 0] - 0.6) ** 2
    misses = {"guided": [], "alone": []}
    for seed in range(20):
        scores, rng = measured(points, 0.5, seed), np.random.default_rng(0)
        guided = GuidedProcesses(points, scores, guide, rng).mean(points).argmax()
        alone = GaussianProcesses(points, scores, rng).mean(points).argmax()
        misses["guided"].append(abs(points[guided, 0] - 0.6))
        misses["alone"].append(abs(points[alone, 0] - 0.6))
    assert np.mean(misses["guided"]) < 0.75 * np.mean(misses["alone"])


def test_scores_correct_a_guide_whose_best_is_elsewhere():
    points = np.linspace(0, 1, 25)[:, None]
    guide = -((points[:, 0] - 0.45) ** 2)
    found = GuidedProcesses(points, measured(points, 0.1), guide, np.random.default_rng(0))
    assert found.factor > 0
    assert points[found.mean(points).argmax(), 0] == pytest.approx(0.6, abs=0.1)
    assert points[found.from_guide(points, guide).argmax(), 0] == pytest.approx(0.6, abs=0.1)
    drawn = found.draw(4000)
    assert drawn.mean(axis=0) == pytest.approx(found.mean(points), abs=0.05)


@pytest.mark.parametrize("factor", [-1.0, 0.0])
def test_a_guide_that_is_flat_or_ranks_in_reverse_is_not_used(factor):
    points = np.linspace(0, 1, 8)[:, None]
    scores = points[:, 0] ** 2
    guide = 0.1 + factor * scores
    found = GuidedProcesses(points, scores, guide, np.random.default_rng(0))
    assert found.factor == 0
    assert found.mean(points) == pytest.approx(scores, abs=0.1)


def test_one_thread_computes_and_the_others_come_back():
    def threads():
        blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        return [torch.get_num_threads(), *blas]

    with restored_state():
        torch.set_num_threads(2)
        before = threads()
        with one_thread():
            assert threads() == [1] * len(before)
        assert threads() == before
