"""Recorded learning curves, and what the trainings cost.

Costs are medians over the table, the same for every configuration. They are CPU seconds rather than
those of the clock, which other work on the recording machine stretches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq

from search_spaces import SearchSpace
from tests.benchmarks.record_curves import END
from trainers.evaluation.line import POINTS
from trainers.evaluation.metrics import MEAN_ACC

DRAWINGS = ("clipart", "infograph", "plane", "sketch")
RECORDED = [Path(__file__).with_name(f"{name}.parquet") for name in DRAWINGS]
"""Curves of the quickstart, on the domain of their name and on that of the quickstart."""
COLLAPSE = 5.0
"""Percentage points."""
Row: TypeAlias = Mapping[str, Any]
Curve: TypeAlias = Mapping[int, Mapping[str, float]]
"""Step -> the metrics of the evaluation there."""


@dataclass(frozen=True)
class Costs:
    """What training takes, in seconds of one device."""

    step_seconds: float
    eval_seconds: float
    """An evaluation before the last step, on the sample of images that rungs use."""
    final_seconds: float
    """The evaluation after the last step, on all images."""
    line_seconds: float = 0.0
    """Measuring the points of the line there, on the sample."""
    start_seconds: float = 0.0
    """From the start of a trial to its first step."""
    process_seconds: float = 0.0
    """What that takes longer for the first trial of a device, which starts the processes."""

    def interval(self, steps, *, last):
        """So many steps and an evaluation, that at the end of the trial or another one."""
        end = self.final_seconds + self.line_seconds if last else self.eval_seconds
        return steps * self.step_seconds + end


@dataclass(frozen=True)
class CurveTable:
    """Curves of configurations that were really trained."""

    space: SearchSpace
    params: tuple[Mapping[str, float], ...]
    """Of each configuration, by dotted key."""
    curves: tuple[Curve, ...]
    """In the order of `params`. One that ends early is of a training that diverged."""

    @property
    def total_steps(self):
        """Of a training that went to its end."""
        return max(max(curve) for curve in self.curves if curve)

    def at_ends(self):
        """The same trainings without their lines: the last metrics are those of the end."""
        curves = tuple(
            {
                step: {k.removeprefix(END): v for k, v in found.items() if k.startswith(END)}
                if step == self.total_steps
                else found
                for step, found in curve.items()
            }
            for curve in self.curves
        )
        return replace(self, curves=curves)


def read_table(path, space):
    """The curves of a file that `record_curves` wrote, and what they cost."""
    rows = pq.read_table(path).to_pylist()
    return curve_table(without_collapse(rows), space), median_costs(rows)


def without_collapse(rows):
    """Rows in which trainings that collapsed report what the worst of the others did.

    A surface through both would be one of collapse alone. Collapsed are those that end more than
    `COLLAPSE` points below the zero-shot model, of which no search chooses one.
    """
    last = {_training(row): row for row in rows if row["line/a"] is not None}
    lost = {k for k, r in last.items() if r[MEAN_ACC] < r[f"line/0/{MEAN_ACC}"] - COLLAPSE}
    worst = min((key for key in last if key not in lost), key=lambda key: last[key][MEAN_ACC])
    instead = {row["step"]: row for row in rows if _training(row) == worst}
    own = ("configuration", "seed", "optim.lr", "method.reg_weight")
    return [
        {**instead[row["step"]], **{key: row[key] for key in own}}
        if _training(row) in lost
        else row
        for row in rows
    ]


def curve_table(rows, space):
    """The table of those rows, one an evaluation, sorted by configuration."""
    params, curves = [], []
    for _, of in groupby(rows, key=_training):
        evaluations = list(of)
        params.append({key: evaluations[0][key] for key in space.parameters})
        curves.append({int(row["step"]): _metrics(row, space) for row in evaluations})
    return CurveTable(space, tuple(params), tuple(curves))


def median_costs(rows):
    """Median CPU seconds of a step, and of the evaluations.

    CPU seconds are counted for all together; they are shared out as the wall clock was. The first
    row of each configuration is left out, for it contains the loading of model and data, unless it
    is the only one. The line is measured on as many images, at each of its points, as an evaluation
    before the last step; without one, as the last evaluation.
    """
    steps, evaluations, finals = [], [], []
    for _, of in groupby(rows, key=_training):
        curve = list(of)
        if len(curve) == 1:
            curve = [dict.fromkeys(curve[0], 0), *curve]
        for before, after in pairwise(curve):
            cpu, wall, evaluating = (
                after[f"cost/{name}"] - before[f"cost/{name}"]
                for name in ("cpu_seconds", "seconds", "eval_seconds")
            )
            share = evaluating / wall
            (evaluations if after["line/a"] is None else finals).append(share * cpu)
            steps.append((1 - share) * cpu / (after["step"] - before["step"]))
    evaluations = evaluations or [final / (len(POINTS) + 2) for final in finals]
    line = (len(POINTS) + 1) * median(evaluations)
    return Costs(median(steps), median(evaluations), median(finals) - line, line)


def unit_point(space, params):
    """The parameters as a point of the unit cube, (parameters,); numeric parameters only."""
    return np.array([p.unit(float(params[key])) for key, p in space.parameters.items()])


def _training(row):
    return row["configuration"], row["seed"]


def _metrics(row, space):
    keys = row.keys() - space.parameters.keys() - {"configuration", "seed", "step"}
    return {k: row[k] for k in keys if row[k] is not None and not k.startswith("cost/")}
