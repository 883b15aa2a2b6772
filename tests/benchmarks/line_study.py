"""Whether the choice of a point of the line should be drawn to a fixed point when images are few.

`python -m tests.benchmarks.line_study` draws measured lines of known curves, with one ID domain and
four OOD domains, and prints how far the true `val/mean_acc` of the chosen point is below that of
the best one, for each number of images of a domain. `--recorded` takes the lines of recorded
trainings, means over their seeds, for the true curves.

An image has a latent value at each point, with the correlation 0.9 between points 0.25 apart, and
is classified correctly where that is below a bound. se is the standard error of the difference of
two points' accuracies, which a trial could only estimate. Rules that draw the choice a to t:

- shrink: t + w (a - t), w = g^2 / (g^2 + se^2), with g the gain of the fitted curve from t to a;
- one se: the point nearest to t, on the way from a, whose fitted value is at most se lower;
- penalty: the best point of the fitted curve minus se (a - t)^2, se of points 0.25 apart.
"""

import argparse

import numpy as np
import pyarrow.parquet as pq
from scipy.interpolate import PchipInterpolator
from scipy.special import ndtri

from tests.benchmarks.curve_table import RECORDED
from trainers.evaluation.line import GRID, POINTS, LineGoal, choose_point
from trainers.evaluation.metrics import MEAN_ACC

KNOWN, GRID_A = np.array([0.0, *POINTS, 1.0]), np.array(GRID)
IMAGES = (50, 100, 200, 500, 2000)
OOD, LATENT = 4, 0.9
GOAL = LineGoal(objectives=((MEAN_ACC, "max"),))
CURVES = {
    "top at .8": lambda a: 70 - 5 * (a - 0.8) ** 2,
    "flat": lambda a: 70 + 0 * a,
    "top at 1": lambda a: 70 - 5 * (a - 1) ** 2,
    "late fall": lambda a: 68 + 5 * a - 10 * a**6,
    "top at .4": lambda a: 70 - 10 * (a - 0.4) ** 2,
}
TOGETHER = 100
"""Draws at a time, for the memory."""


def measured(curve, images, draws, rng):
    """Values at `KNOWN`, (draws, 5): an image is right where its latent value is below a bound."""
    factor = np.linalg.cholesky(LATENT ** (np.abs(KNOWN[:, None] - KNOWN) / 0.25)).astype("f4")
    bounds, found = ndtri(curve(KNOWN) / 100).astype("f4"), []
    for begin in range(0, draws, TOGETHER):
        shape = (min(TOGETHER, draws - begin), 1 + OOD, images, len(KNOWN))
        right = rng.standard_normal(shape, dtype="f4") @ factor.T < bounds
        accs = 100 * right.mean(axis=2)
        found.append((accs[:, 0] + accs[:, 1:].mean(axis=1)) / 2)
    return np.concatenate(found)


def today(values):
    """The points that a trial chooses, (draws,)."""
    lines = [{a: {MEAN_ACC: v} for a, v in zip(KNOWN, line, strict=True)} for line in values]
    return np.array([choose_point(line, GOAL) for line in lines])


def fitted(values, points):
    """The parabola of `choose_point` at points (draws,) or (draws, n)."""
    coefficients = np.polynomial.polynomial.polyfit(KNOWN, values.T, 2)
    c, b, a = coefficients[..., None] if points.ndim == 2 else coefficients
    return c + b * points + a * points**2


def nearest(a):
    return GRID_A[np.abs(GRID_A - a[:, None]).argmin(axis=1)]


def difference_error(images, distance):
    """Standard error of the difference of the mean accuracies of two points, near 70 %."""
    correlation = 2 / np.pi * np.arcsin(LATENT ** (np.abs(distance) / 0.25))
    of_one = 100 * np.sqrt(0.7 * 0.3 / images * (1 + 1 / OOD) / 4)
    return of_one * np.sqrt(2 * (1 - correlation))


def shrink(values, chosen, images, t):
    gain = (fitted(values, chosen) - fitted(values, np.full_like(chosen, t))).clip(min=0)
    se = difference_error(images, chosen - t)
    weight = np.divide(gain**2, gain**2 + se**2, out=np.zeros_like(gain), where=se > 0)
    return nearest(t + weight * (chosen - t))


def one_se(values, chosen, images, t):
    grid, best = np.tile(GRID_A, (len(chosen), 1)), fitted(values, chosen)[:, None]
    margin = difference_error(images, grid - chosen[:, None])
    on_the_way = (grid - chosen[:, None]) * (t - chosen[:, None]) >= -1e-9
    enough = (fitted(values, grid) >= best - margin - 1e-9) & on_the_way
    return GRID_A[np.where(enough, np.abs(grid - t), np.inf).argmin(axis=1)]


def penalty(values, chosen, images, t):
    grid, best = np.tile(GRID_A, (len(chosen), 1)), KNOWN[1 + values[:, 1:].argmax(axis=1)]
    curve = fitted(values, grid) - difference_error(images, 0.25) * (grid - t) ** 2
    near = np.abs(grid - best[:, None]) <= 0.25 + 1e-9
    return GRID_A[np.where(near, curve, -np.inf).argmax(axis=1)]


RULES = {"shrink": shrink, "one se": one_se, "penalty": penalty}
TARGETS = (0.5, 0.75, 1.0)


def recorded():
    """A true curve for each configuration: the mean over its seeds."""
    curves = {}
    for file in RECORDED:
        rows = [row for row in pq.read_table(file).to_pylist() if row["line/a"] is not None]
        lines = {}
        for row in rows:
            line = [row[f"line/{a:g}/{MEAN_ACC}"] for a in KNOWN]
            lines.setdefault(row["configuration"], []).append(line)
        curves[file.stem] = [PchipInterpolator(KNOWN, np.mean(of, axis=0)) for of in lines.values()]
    return curves


def regrets(curves, images, draws, rng):
    """Rule -> mean regret over the draws of all curves, in points."""
    found = {}
    for curve in curves:
        values = measured(curve, images, draws, rng)
        chosen, true = today(values), curve(GRID_A)
        points = {"today": chosen}
        points |= {f"a = {a:g}": np.full(draws, a) for a in TARGETS}
        for name, rule in RULES.items():
            for t in TARGETS:
                points[f"{name}, {t:g}"] = rule(values, chosen, images, t)
        for name, a in points.items():
            regret = true.max() - true[np.abs(GRID_A - a[:, None]).argmin(axis=1)]
            found.setdefault(name, []).append(regret.mean())
    return {name: float(np.mean(values)) for name, values in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000, help="for each column")
    parser.add_argument("--recorded", action="store_true", help="lines of recorded trainings")
    arguments = parser.parse_args()
    curves = recorded() if arguments.recorded else {name: [c] for name, c in CURVES.items()}
    columns = {}
    for name, of in curves.items():
        rng, draws = np.random.default_rng(0), max(1, arguments.draws // len(of))
        columns[name] = [regrets(of, images, draws, rng) for images in IMAGES]
    print("|", *(f"| {name} " for name in columns), "|")
    print("|---" * (1 + len(columns)) + "|")
    for rule in next(iter(columns.values()))[0]:
        cells = (" / ".join(f"{found[rule]:.2f}" for found in of) for of in columns.values())
        print(f"| {rule} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
