"""Smooth surfaces through the recorded curves, which stand for the truth.

The best of many noisy values is a lucky one, so a search is judged by what its choice is worth on
average: by a Gaussian process through the final objectives of all recorded configurations, each the
mean of its seeds. A simulated trial at any point of the space reports the surfaces' values there
plus noise. That noise is real: the deviations of a recorded training, of all steps and metrics
together and with their sign. The training is of a configuration whose objective on the surface is
as high as that of the point, because trainings that may collapse deviate far more than good ones,
and to one side. Deviations are those from the mean of a configuration's seeds.
"""

from dataclasses import dataclass, field

import numpy as np
from ray.tune.utils import flatten_dict
from scipy.stats import qmc
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from tests.benchmarks.curve_table import unit_point
from trainers.evaluation.line import LineGoal, choose_point

DONORS = 10
"""Recorded configurations whose deviations may be drawn at a point."""
LOG2_CANDIDATES = 13


class Surfaces:
    """Surfaces of some metrics at all recorded steps, with one kernel.

    Args:
        metrics: the objective first. NLLs are modelled by their logarithms. Those of the line, if
            any, are reported with the last step alone, and with them the point that they choose.
    """

    def __init__(self, table, metrics):
        self.space, self.metrics, self.total_steps = table.space, metrics, table.total_steps
        self.steps = tuple(sorted({step for curve in table.curves for step in curve}))
        self._is_nll = np.array([metric.endswith("nll") for metric in metrics])
        trainings: dict[tuple[float, ...], list[np.ndarray]] = {}  # those of a point are its seeds
        for params, curve in zip(table.params, table.curves, strict=True):
            if self.total_steps in curve:
                last = curve[self.total_steps]
                values = np.array([[curve[s].get(m, last[m]) for m in metrics] for s in self.steps])
                values[:, self._is_nll] = np.log(values[:, self._is_nll])
                point = tuple(unit_point(table.space, params))
                trainings.setdefault(point, []).append(values.ravel())
        self._points = np.array(list(trainings))
        seeds = [np.array(of) for of in trainings.values()]  # each (seeds, steps x metrics)
        flat = np.array([of.mean(axis=0) for of in seeds])  # (configurations, steps x metrics)
        dims = self._points.shape[1]
        kernel = ConstantKernel() * Matern([0.5] * dims, (0.05, 50), nu=2.5) + WhiteKernel(0.05)
        process = GaussianProcessRegressor(kernel, normalize_y=True)
        self._kernel = process.fit(self._points, flat[:, -len(metrics)]).kernel_
        self.matters = np.atleast_1d(self._kernel.k1.k2.length_scale) < 10
        """Whether each parameter changes the objective within the cube, (parameters,)."""
        self._mean, self._scale = flat.mean(axis=0), flat.std(axis=0)
        self._scale[self._scale == 0] = 1  # the beginning of the line, which is zero-shot
        inverse = np.linalg.inv(self._kernel(self._points))
        self._weights = inverse @ ((flat - self._mean) / self._scale)
        self._finals = self.at(self._points)[:, -1, 0]
        repeated = [i for i, of in enumerate(seeds) if len(of) > 1]
        self._finals = self._finals[repeated]
        # n values are closer to their own mean than to the true one, by sqrt((n - 1) / n).
        self._deviations = [  # each (seeds, steps x metrics)
            np.sqrt(len(of) / (len(of) - 1)) * (of - of.mean(axis=0))
            for of in (seeds[i] for i in repeated)
        ]
        candidates = qmc.Sobol(dims, seed=0).random_base2(LOG2_CANDIDATES)
        finals = self.at(candidates)[:, -1, 0]
        self.best, self.best_point = float(finals.max()), candidates[finals.argmax()]

    def noise_at(self, final):
        """Deviations that a training with this true final objective may have.

        Returns:
            (trainings, steps x metrics), with a mean of 0.
        """
        alike = np.argsort(np.abs(self._finals - final))[:DONORS]
        return np.concatenate([self._deviations[i] for i in alike])

    def at(self, points):
        """The surfaces at points of the unit cube, (points, steps, metrics)."""
        flat = self._kernel(points, self._points) @ self._weights * self._scale + self._mean
        return flat.reshape(len(points), len(self.steps), len(self.metrics))

    def draw(self, point, rng):
        """The true final objective at a point, and what a training there might report."""
        truth = self.at(point[None])[0]
        seen = truth + rng.choice(self.noise_at(truth[-1, 0])).reshape(truth.shape)
        seen[:, self._is_nll] = np.exp(seen[:, self._is_nll])
        curve = {
            step: {
                metric: float(value)
                for metric, value in zip(self.metrics, row, strict=True)
                if step == self.total_steps or not metric.startswith("line/")
            }
            for step, row in zip(self.steps, seen, strict=True)
        }
        last, objective = curve[self.total_steps], self.metrics[0]
        names = [metric for metric in self.metrics if metric.startswith("line/")]
        if line := {float(name.split("/")[1]): {objective: last[name]} for name in names}:
            last["line/a"] = choose_point(line, LineGoal(objectives=((objective, "max"),)))
        return float(truth[-1, 0]), curve


@dataclass
class SimulatedTrainings:
    """The trainings of one simulated search, for `simulate`."""

    surfaces: Surfaces
    rng: np.random.Generator
    truths: list[float] = field(default_factory=list)
    """True final objective of each point so far."""
    numbers: dict[tuple[float, ...], int] = field(default_factory=dict)
    """Of the points, which may be trained several times."""

    @property
    def space(self):
        return self.surfaces.space

    def start(self, config):
        """The number of a point and the curve of a new training there."""
        point = unit_point(self.space, flatten_dict(dict(config), delimiter="."))
        truth, curve = self.surfaces.draw(point, self.rng)
        number = self.numbers.setdefault(tuple(point), len(self.truths))
        self.truths += [truth] * (number == len(self.truths))
        return number, curve


def prior_center(surfaces, distance, rng):
    """A point at that distance from the best one in the unit cube, in a random direction.

    Parameters that hardly matter keep their best value. Directions in which the cube ends before
    are drawn again; after 100, the point is on its border.
    """
    for _ in range(100):
        direction = rng.standard_normal(len(surfaces.best_point)) * surfaces.matters
        point = surfaces.best_point + distance * direction / np.linalg.norm(direction)
        if np.all((point >= 0) & (point <= 1)):
            break
    units = zip(surfaces.space.parameters.items(), np.clip(point, 0, 1), strict=True)
    return {key: parameter.at(float(unit)) for (key, parameter), unit in units}
