"""A smooth surface through recorded trainings, which stands for the truth.

The best of many noisy values is a lucky one, so a search is judged by what its choice is worth on
average: by a Gaussian process through the accuracies of the recorded points, each the mean of its
seeds. A simulated training at any point of the space has the value of the surface there, plus the
deviation of a recorded training from the mean of its point, of all metrics together and with their
sign. The recorded point is one whose value on the surface is similar: trainings that may collapse
deviate far more than good ones, and to one side.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from scipy.stats import qmc
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from search_spaces import SearchSpace

OBJECTIVE, NLL = METRICS = ["val/mean_acc", "val/mean_nll"]
ZERO_SHOT = f"line/0/{OBJECTIVE}"
SPACE = b"space"
"""Key of the searched parameters in the metadata of a table."""
COLLAPSE = 5.0
"""Percentage points."""
DONORS = 10
"""Recorded points whose deviations may be drawn at a point."""
LOG2_CANDIDATES = 13


def read_table(path: Path) -> tuple[SearchSpace, pd.DataFrame]:
    """The searched space, and the recorded trainings, a row each.

    `record_curves` at commit b9b9d245 trained points of a Sobol sequence, most with two seeds. They
    have the validation metrics of the last report, at the chosen point of their line.
    """
    schema = pq.read_schema(path)
    space = SearchSpace(parameters=json.loads(schema.metadata[SPACE])["parameters"])
    return space, without_collapse(pq.read_table(path).to_pandas())


def without_collapse(trainings):
    """The trainings, of which those that collapsed have the metrics of the worst of the others.

    A surface through both would be one of collapse alone. Collapsed are those that diverged or end
    more than `COLLAPSE` points below the zero-shot model; no search chooses one.
    """
    is_good = trainings[OBJECTIVE] >= trainings[ZERO_SHOT] - COLLAPSE
    worst = trainings.loc[is_good, OBJECTIVE].idxmin()
    found = trainings.copy()
    found.loc[~is_good, METRICS] = trainings.loc[worst, METRICS].to_numpy()
    return found


class Surface:
    """Surfaces of the metrics over the unit cube of a space, with one kernel.

    Args:
        trainings: with the columns `configuration`, the parameters and `METRICS`. NLLs are modelled
            by their logarithms.
    """

    def __init__(self, space, trainings):
        self.space = space
        trainings = trainings.assign(**{NLL: np.log(trainings[NLL])})
        by_point = [of for _, of in trainings.groupby("configuration")]
        self._points = np.array([unit_point(space, of.iloc[0]) for of in by_point])
        seeds = [of[METRICS].to_numpy() for of in by_point]  # each (seeds, metrics)
        means = np.array([of.mean(axis=0) for of in seeds])  # (points, metrics)
        self._mean, self._scale = means.mean(axis=0), means.std(axis=0)

        dims = len(space.parameters)
        kernel = ConstantKernel() * Matern([0.5] * dims, (0.05, 50), nu=2.5) + WhiteKernel(0.05)
        process = GaussianProcessRegressor(kernel, normalize_y=True)
        self._kernel = process.fit(self._points, means[:, 0]).kernel_
        inverse = np.linalg.inv(self._kernel(self._points))
        self._weights = inverse @ ((means - self._mean) / self._scale)
        self._matters = np.atleast_1d(self._kernel.k1.k2.length_scale) < 10

        repeated = [number for number, of in enumerate(seeds) if len(of) > 1]
        self._repeated = self.at(self._points[repeated])[:, 0]
        # n values are closer to their own mean than to the true one, by sqrt((n - 1) / n).
        self._deviations = [
            np.sqrt(len(of) / (len(of) - 1)) * (of - of.mean(axis=0))
            for of in (seeds[number] for number in repeated)
        ]
        candidates = qmc.Sobol(dims, seed=0).random_base2(LOG2_CANDIDATES)
        values = self.at(candidates)[:, 0]
        self.best, self.best_point = float(values.max()), candidates[values.argmax()]

    def at(self, points):
        """The surfaces at points of the unit cube, (points, metrics)."""
        return self._kernel(points, self._points) @ self._weights * self._scale + self._mean

    def noise_at(self, value):
        """Deviations of a training whose true objective is this value, (trainings, metrics)."""
        alike = np.argsort(np.abs(self._repeated - value))[:DONORS]
        return np.concatenate([self._deviations[number] for number in alike])

    def draw(self, params, rng):
        """The true objective of a configuration, and the metrics that a training reports."""
        truth = self.at(unit_point(self.space, params)[None])[0]
        seen = dict(zip(METRICS, truth + rng.choice(self.noise_at(truth[0])), strict=True))
        return float(truth[0]), {OBJECTIVE: float(seen[OBJECTIVE]), NLL: float(np.exp(seen[NLL]))}

    def center(self, distance, rng):
        """A configuration at that distance from the best point, in a random direction of the cube.

        Parameters that hardly matter keep their best value. Directions in which the cube ends
        before are drawn again; after 100, the point is on its border.
        """
        for _ in range(100):
            direction = rng.standard_normal(len(self.best_point)) * self._matters
            point = self.best_point + distance * direction / np.linalg.norm(direction)
            if np.all((point >= 0) & (point <= 1)):
                break
        units = zip(self.space.parameters.items(), np.clip(point, 0, 1), strict=True)
        return {key: parameter.at(float(unit)) for (key, parameter), unit in units}


def unit_point(space, params):
    """The parameters as a point of the unit cube, (parameters,)."""
    return np.array([p.unit(float(params[key])) for key, p in space.parameters.items()])
