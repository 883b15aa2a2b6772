"""Recorded learning curves as a stand-in for training, and what training would have cost.

A proposal is answered with the curve of the *nearest recorded configuration*, in the unit cube of
the space, logarithmic where a parameter is, so every value that a search sees was measured. Nothing
is interpolated; `surface` fits a model for comparisons.

Costs are medians over the table, the same for every configuration: an interval costs its steps
times `step_seconds`, plus `eval_seconds` for the evaluation at its end. CPU seconds rather than the
wall clock, which other work on the recording machine stretches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq
from ray.tune.utils import flatten_dict

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
    process_seconds: float = 0.0
    """What that takes longer for the first trial of a device, which starts the processes."""

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

    def nearest(self, config: Mapping[str, Any]) -> int:
        """The index of the recorded configuration closest to a proposal, flat or nested."""
        flat = flatten_dict(dict(config), delimiter=".")
        distances = np.linalg.norm(self._points - unit_point(self.space, flat), axis=1)
        return int(distances.argmin())

    def start(self, config: Mapping[str, Any]) -> tuple[int, Curve]:
        """The nearest configuration and its curve."""
        index = self.nearest(config)
        return index, self.curves[index]

    def of_weights(self, prefix: str) -> CurveTable:
        """The same trainings by the columns with a prefix, at the steps that have them."""
        curves = tuple(
            {
                step: {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
                for step, found in curve.items()
                if any(key.startswith(prefix) for key in found)
            }
            for curve in self.curves
        )
        return replace(self, curves=curves)

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
    for _, of in groupby(rows, key=lambda row: (row["configuration"], row.get("seed", 0))):
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
    for _, of in groupby(rows, key=lambda row: (row["configuration"], row.get("seed", 0))):
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
    keys = row.keys() - space.parameters.keys() - {"configuration", "seed", "step"}
    found = {k: row[k] for k in keys if row[k] is not None and not k.startswith("cost/")}
    ood_nlls = [v for k, v in found.items() if k.startswith("ood_val/") and k.endswith("/nll")]
    if ood_nlls:  # tables of older versions lack it
        found["val/mean_nll"] = math.sqrt(found["id_val/nll"] * fmean(ood_nlls))
    return found
