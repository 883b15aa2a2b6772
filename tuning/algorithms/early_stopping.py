"""Rules of early stopping, independent of Ray.

A rule gets every report as (trial, step, values), with objectives signed so that more is better,
and returns whether the trial continues. Its state depends on these reports only, so passing the
recorded curves again restores it after a resume. With several objectives, trials are ranked by
layers of non-dominated points, and within a layer by `distances_to_ideal`.
"""

from __future__ import annotations

import bisect
import math
import random
import statistics
from collections.abc import Sequence
from typing import Protocol, TypeAlias

Values: TypeAlias = tuple[float, ...]


class StoppingRule(Protocol):
    """Decides at each report whether a trial goes on."""

    def should_continue(self, number: int, step: int, values: Values | None) -> bool:
        """Take a report into account, and return whether the trial continues.

        Args:
            step: optimiser steps done.
            values: None if one of them is not finite, which is worse than any value.
        """


def rung_ladder(grace_steps: int, reduction_factor: float, total_steps: int) -> list[int]:
    """The steps at which trials are compared: grace, grace * factor, ... below the last."""
    rungs: list[int] = []
    step = float(grace_steps)
    while round(step) < total_steps:
        if round(step) not in rungs[-1:]:  # a small factor rounds to one step twice
            rungs.append(round(step))
        step *= reduction_factor
    return rungs


class Asha:
    """Asynchronous successive halving (Li et al., MLSys 2020), in its stopping form.

    A trial that reaches a rung continues if it is among the best 1 / `reduction_factor` of the
    trials that have reached it so far, including itself, and always if it is the best of them.
    """

    def __init__(self, rungs: Sequence[int], reduction_factor: float) -> None:
        self.rungs = tuple(rungs)
        self.reduction_factor = reduction_factor
        self._reached: dict[int, dict[int, Values | None]] = {rung: {} for rung in rungs}
        self._sorted: dict[int, list[float]] = {rung: [] for rung in rungs}

    def should_continue(self, number: int, step: int, values: Values | None) -> bool:
        """Compare the trial at every rung that it has reached since its last report."""
        new = [r for r in self.rungs if r <= step and number not in self._reached[r]]
        for rung in new:  # a report may pass several rungs; it then counts at each
            self._reached[rung][number] = values
            if values is not None and len(values) == 1:
                bisect.insort(self._sorted[rung], values[0])
        if not new:
            return True
        if values is None:
            return False
        reached = self._reached[new[-1]]
        if len(values) == 1:
            ordered = self._sorted[new[-1]]
            better = len(ordered) - bisect.bisect_right(ordered, values[0])
        else:
            better = _better_by_layers(values, [v for v in reached.values() if v is not None])
        return better < max(1, math.floor(len(reached) / self.reduction_factor))


class Hyperband:
    """Asynchronous Hyperband (Li et al., MLSys 2020): several brackets of ASHA in parallel.

    Bracket s starts s rungs later, so it stops trials later. As in Ray Tune, the share of trials of
    a bracket is proportional to exp(number of its rungs). A trial's number decides its bracket.
    """

    def __init__(self, rungs: Sequence[int], reduction_factor: float, brackets: int) -> None:
        ladders = [rungs[s:] for s in range(max(1, min(brackets, len(rungs))))]
        self._brackets = [Asha(ladder, reduction_factor) for ladder in ladders]
        self._weights = [math.exp(len(ladder) - len(rungs)) for ladder in ladders]

    def should_continue(self, number: int, step: int, values: Values | None) -> bool:
        """Apply the rule of the trial's bracket."""
        (bracket,) = random.Random(number).choices(self._brackets, self._weights)
        return bracket.should_continue(number, step, values)


class MedianRule:
    """The median stopping rule (Golovin et al., KDD 2017, section 3.2.1).

    A trial stops at a step if its best value is worse than the median of the other trials' running
    means up to that step. With several objectives, this must hold for each of them.
    """

    def __init__(self, grace_steps: int, min_trials: int) -> None:
        self.grace_steps, self.min_trials = grace_steps, min_trials
        self._curves: dict[int, dict[int, Values]] = {}

    def should_continue(self, number: int, step: int, values: Values | None) -> bool:
        """Compare with all trials that have reached the step."""
        if values is None:
            return step < self.grace_steps
        self._curves.setdefault(number, {})[step] = values
        if step < self.grace_steps:
            return True
        means = [
            [statistics.fmean(v) for v in zip(*(curve[s] for s in curve if s <= step), strict=True)]
            for other, curve in self._curves.items()
            if other != number and min(curve) <= step <= max(curve)
        ]
        if len(means) < self.min_trials:
            return True
        mine = [v for s, v in self._curves[number].items() if s <= step]
        best = [max(column) for column in zip(*mine, strict=True)]
        medians = [statistics.median(column) for column in zip(*means, strict=True)]
        return any(b >= m for b, m in zip(best, medians, strict=True))


def dominates(a: Values, b: Values) -> bool:
    """Whether `a` is at least as good in every value and better in one."""
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b


def non_dominated(points: Sequence[Values]) -> list[int]:
    """The indices of the points that no other point dominates: the Pareto front."""
    return [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]


def distances_to_ideal(points: Sequence[Values]) -> list[float]:
    """Euclidean distance of each point to the best value of every objective.

    Each objective is scaled to its range over these points, so its unit has no influence.
    """
    columns = list(zip(*points, strict=True))
    best = [max(column) for column in columns]
    scales = [max(column) - min(column) or 1.0 for column in columns]
    return [
        math.hypot(*((b - v) / s for b, v, s in zip(best, point, scales, strict=True)))
        for point in points
    ]


def _better_by_layers(values: Values, points: list[Values]) -> int:
    """The number of points that rank before `values`, which is one of them."""
    better = 0
    while True:
        front = [points[i] for i in non_dominated(points)]
        if values in front:
            distances = distances_to_ideal(front)
            own = distances[front.index(values)]
            return better + sum(distance < own for distance in distances)
        better += len(front)
        points = [p for p in points if p not in front]
