"""Gaussian processes through the noisy scores of a few trials.

A few trials do not determine the parameters of a process, so expected scores are an average over
many of them. Optuna's `GPSampler` takes the most likely ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
from threadpoolctl import threadpool_limits

_KERNELS: Final = 256
_AMPLITUDE: Final = (0.05, 20.0)
"""Range of the variance of the configurations, relative to that of the scores."""
_LENGTH: Final = (0.1, 10.0)
"""Range of the length scales, relative to the range of a hyperparameter."""
_NOISE: Final = (0.01, 1.0)
"""Range of the variance from one training to the next, relative to that of the scores."""
_POINTS_TOGETHER: Final = 100
"""Limits the memory for the covariances of points with the trials."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit BLAS and, where it is loaded, PyTorch to one thread.

    Several threads do not speed up such small matrices. Where trainings occupy all cores, threads
    that wait for each other make a proposal of the sampler take many times as long.
    """
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        if torch:
            torch.set_num_threads(threads)


class GaussianProcesses:
    """Gaussian processes with Matérn kernels (nu = 5/2) through noisy scores.

    Their amplitudes, length scales and noises are drawn from wide ranges and weighted by their
    marginal likelihood.

    Args:
        points: (trials, parameters), in the unit cube.
        scores: (trials,).
    """

    def __init__(self, points: np.ndarray, scores: np.ndarray, rng: np.random.Generator) -> None:
        def draw(bounds: tuple[float, float], *shape: int) -> np.ndarray:
            low, high = np.log(bounds)
            return np.exp(rng.uniform(low, high, size=(_KERNELS, *shape)))

        self._points, self._rng = points, rng
        self._shift, self._scale = scores.mean(), scores.std() or 1.0
        self._amplitudes, noises = draw(_AMPLITUDE, 1, 1), draw(_NOISE, 1, 1)
        self._lengths = draw(_LENGTH, points.shape[1])
        covariances = self._kernels(points) + noises * np.eye(len(scores))
        self._lower = np.linalg.cholesky(covariances)
        standard = (scores - self._shift) / self._scale
        columns = np.broadcast_to(standard[:, None], (_KERNELS, len(scores), 1))
        # The expected score of a point is the product with its covariances, (kernels, trials).
        self._solved = np.linalg.solve(covariances, columns)[:, :, 0]
        likelihoods = -0.5 * self._solved @ standard
        likelihoods -= np.log(np.diagonal(self._lower, axis1=1, axis2=2)).sum(axis=1)
        weights = np.exp(likelihoods - likelihoods.max())
        self._weights = weights / weights.sum()

    def mean(self, points: np.ndarray) -> np.ndarray:
        """Expected scores without noise, (points,)."""
        parts = np.array_split(points, 1 + len(points) // _POINTS_TOGETHER)
        weighted = self._weights[:, None] * self._solved
        expected = [np.tensordot(weighted, self._kernels(part), 2) for part in parts]
        return self._shift + self._scale * np.concatenate(expected)

    def draw(self, number: int) -> np.ndarray:
        """Scores without noise that the trials may have, drawn at random, (number, trials)."""
        kernels, trials = self._kernels(self._points), len(self._points)
        found = []
        for kernel, draws in enumerate(self._rng.multinomial(number, self._weights)):
            if draws:
                half = np.linalg.solve(self._lower[kernel], kernels[kernel])
                # A smooth kernel has a covariance of almost rank 1, hence the small diagonal.
                tiny = 1e-6 * self._amplitudes[kernel] * np.eye(trials)
                root = np.linalg.cholesky(kernels[kernel] - half.T @ half + tiny)
                spread = self._rng.standard_normal((draws, trials)) @ root.T
                found.append(self._solved[kernel] @ kernels[kernel] + spread)
        # In random order, since draws of two processes are added.
        return self._shift + self._scale * self._rng.permutation(np.concatenate(found))

    def _kernels(self, points: np.ndarray) -> np.ndarray:
        """Covariances between the trials and points, (kernels, trials, points)."""
        squares = (self._points[:, None] - points) ** 2  # (trials, points, parameters)
        distances = np.sqrt(5 * np.tensordot(self._lengths**-2, squares, (1, 2)))
        return self._amplitudes * (1 + distances + distances**2 / 3) * np.exp(-distances)


class GuidedProcesses:
    """Scores as a multiple of less noisy ones, the guide, plus the difference from that multiple.

    This is autoregressive co-kriging (Kennedy and O'Hagan, Biometrika 87, 2000): both parts are
    `GaussianProcesses`. A guide whose values are equal, or that ranks in reverse, is not used.

    Args:
        points: (trials, parameters), in the unit cube.
        scores, guide: (trials,), higher is better.
    """

    def __init__(
        self, points: np.ndarray, scores: np.ndarray, guide: np.ndarray, rng: np.random.Generator
    ) -> None:
        self._guide = GaussianProcesses(points, guide, rng)
        smooth = self._guide.mean(points)
        centred = smooth - smooth.mean()
        # Least squares. Equal values differ by rounding errors after smoothing.
        is_flat = np.ptp(smooth) <= 1e-9 * np.abs(smooth).max()
        self.factor = 0.0 if is_flat else max(0.0, float(centred @ scores / (centred @ centred)))
        self._rest = GaussianProcesses(points, scores - self.factor * smooth, rng)

    def mean(self, points: np.ndarray) -> np.ndarray:
        """Expected scores without noise, (points,)."""
        return self.factor * self._guide.mean(points) + self._rest.mean(points)

    def draw(self, number: int) -> np.ndarray:
        """Scores without noise that the trials may have, drawn at random, (number, trials)."""
        return self.factor * self._guide.draw(number) + self._rest.draw(number)

    def from_guide(self, points: np.ndarray, guide: np.ndarray) -> np.ndarray:
        """Expected scores where the guide was measured, (points,). They keep the guide's noise.

        Args:
            guide: its values at the points, (points,).
        """
        return self.factor * guide + self._rest.mean(points)
