"""Recorded learning curves as a stand-in for training, and what training would have cost.

A proposal is answered with the curve of the *nearest recorded configuration*, in the unit cube of
the space, logarithmic where a parameter is. So every value that a search sees was measured on a
real training run, noise included; the price is that proposals closer together than the table's
points get one and the same curve, with the same noise, each time: a search that keeps to a small
region repeats itself there and learns nothing new. For comparison, each configuration can be lent
once only (`simulate(..., once=True)`). Nothing is interpolated and no model is fitted.

Costs are medians over the table, the same for every configuration: an interval costs its steps
times `step_seconds`, plus `eval_seconds` for the evaluation at its end. CPU seconds rather than the
wall clock, which other work on the recording machine stretches.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq
from ray.tune.utils import flatten_dict
from scipy.stats import spearmanr

from search_spaces import SearchSpace

Row: TypeAlias = Mapping[str, Any]
Curve: TypeAlias = Mapping[int, Mapping[str, float]]
"""Step -> the metrics of the evaluation there."""


@dataclass(frozen=True)
class Costs:
    """What training takes, in seconds of one device."""

    step_seconds: float
    eval_seconds: float
    start_seconds: float = 0.0
    """From the start of a trial to its first step."""

    def interval(self, steps: int) -> float:
        """So many steps and one evaluation."""
        return steps * self.step_seconds + self.eval_seconds

    def trial(self, steps: int) -> float:
        """A trial that is evaluated at its end alone."""
        return self.start_seconds + self.interval(steps)


@dataclass(frozen=True)
class CurveTable:
    """Curves of configurations that were really trained."""

    space: SearchSpace
    params: tuple[Mapping[str, float], ...]
    """Of each configuration, by dotted key."""
    curves: tuple[Curve, ...]
    """In the order of `params`. One that ends early is of a training that diverged."""

    @property
    def total_steps(self) -> int:
        """Of a training that went to its end."""
        return max(max(curve) for curve in self.curves if curve)

    def finals(self, metric: str) -> np.ndarray:
        """The metric of each configuration at the last step, (configurations,); -inf for none."""
        last = self.total_steps
        return np.array([c[last][metric] if last in c else -math.inf for c in self.curves])

    def rank_correlations(self, metric: str) -> dict[int, float]:
        """Spearman's between each step's values and the last, among the better half at the end."""
        finals = self.finals(metric)
        better = [
            self.curves[i] for i in np.flatnonzero(finals >= np.median(finals[np.isfinite(finals)]))
        ]
        last = [curve[self.total_steps][metric] for curve in better]
        return {
            step: float(spearmanr([curve[step][metric] for curve in better], last).statistic)
            for step in sorted(better[0])[:-1]
        }

    def nearest(self, config: Mapping[str, Any], taken: Collection[int] = ()) -> int:
        """The index of the recorded configuration closest to a proposal, flat or nested.

        Args:
            config: the proposal.
            taken: configurations that are out of the question; not all of them.
        """
        flat = flatten_dict(dict(config), delimiter=".")
        distances = np.linalg.norm(self._points - unit_point(self.space, flat), axis=1)
        distances[list(taken)] = math.inf
        return int(distances.argmin())

    @cached_property
    def _points(self) -> np.ndarray:
        return np.array([unit_point(self.space, p) for p in self.params])


def read_table(path: Path, space: SearchSpace) -> tuple[CurveTable, Costs]:
    """The curves of a file that `record_curves` wrote, and what they cost."""
    rows = pq.read_table(path).to_pylist()
    return curve_table(rows, space), median_costs(rows)


def curve_table(rows: Iterable[Row], space: SearchSpace) -> CurveTable:
    """The table of those rows, one an evaluation, sorted by configuration."""
    params, curves = [], []
    for _, of in groupby(rows, key=lambda row: row["configuration"]):
        evaluations = list(of)
        params.append({key: evaluations[0][key] for key in space.parameters})
        curves.append({int(row["step"]): _metrics(row, space) for row in evaluations})
    return CurveTable(space, tuple(params), tuple(curves))


def median_costs(rows: Iterable[Row]) -> Costs:
    """Median CPU seconds of a step and of an evaluation.

    CPU seconds are counted for both together; they are shared out as the wall clock was. The first
    row of each configuration is left out, for it contains the loading of model and data.
    """
    steps, evaluations = [], []
    for _, of in groupby(rows, key=lambda row: row["configuration"]):
        curve = list(of)
        for before, after in pairwise(curve):
            cpu, wall, evaluating = (
                after[f"cost/{name}"] - before[f"cost/{name}"]
                for name in ("cpu_seconds", "seconds", "eval_seconds")
            )
            share = evaluating / wall
            evaluations.append(share * cpu)
            steps.append((1 - share) * cpu / (after["step"] - before["step"]))
    return Costs(median(steps), median(evaluations))


def unit_point(space: SearchSpace, params: Mapping[str, Any]) -> np.ndarray:
    """The parameters as a point of the unit cube, (parameters,); numeric parameters only."""
    return np.array([p.unit(float(params[key])) for key, p in space.parameters.items()])  # type: ignore[union-attr]


def _metrics(row: Row, space: SearchSpace) -> dict[str, float]:
    keys = row.keys() - space.parameters.keys() - {"configuration", "step"}
    return {key: row[key] for key in keys if row[key] is not None and not key.startswith("cost/")}
