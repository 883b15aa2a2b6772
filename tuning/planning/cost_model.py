"""The cost of a search, by replaying it 50 times: arithmetic alone, no Ray, no clock.

Which trials stop early depends on values that are unknown before the search, so they are drawn: at
step t of T a trial has the value

    rise * t / T + quality + noise * (1 - t / T),      quality, noise ~ N(0, 1) for each trial,

so early values predict the last one a little, and later values better. The stopping rules of real
searches stop these trials, in the order in which their reports would arrive.

The range of an estimate has two sources: which trials are stopped, and how long a step really
takes. For the second, the durations of each trial are multiplied by exp(s * (z + z')), where s is
the relative spread of the measured steps and z, z' ~ N(0, 1) are drawn once for a replay and once
for a trial. What comes before and after the trials varies as much.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

Values: TypeAlias = tuple[float, ...]

RISE = 1.0
"""Gain of all trials from first to last step, in standard deviations of their quality. Rules that
compare trials at equal steps do not depend on it; the median rule does."""
QUANTILES = (0.05, 0.5, 0.95)
REPLAYS = 50


class Halving:
    """Asynchronous successive halving by the first value, once enough trials have finished."""

    def __init__(self, rungs: Sequence[int], factor: int, total_steps: int, least: int) -> None:
        self._reached: dict[int, dict[int, float]] = {rung: {} for rung in rungs}
        self._factor, self._total_steps, self._least = factor, total_steps, least
        self._finished = 0

    def should_continue(self, number: int, step: int, values: Values) -> bool:
        """Take a report into account, and return whether the trial continues."""
        self._finished += step >= self._total_steps
        new = [r for r, of in self._reached.items() if r <= step and number not in of]
        for rung in new:
            self._reached[rung][number] = values[0]
        if not new or self._finished < self._least:
            return True
        ranked = sorted(self._reached[new[-1]].values(), reverse=True)
        return values[0] >= ranked[max(1, len(ranked) // self._factor) - 1]


@dataclass(frozen=True)
class TrialCost:
    """Seconds of wall clock that a trial takes."""

    startup_s: float
    """Model and images, in workers that are kept from trial to trial."""
    step_s: float
    eval_s: float
    """The evaluation after the last step, and the checkpoint that goes with it."""
    rung_s: float | None = None
    """An earlier evaluation and its checkpoint; None if they take as long as the last ones."""
    spread: float = 0.0
    """Relative standard deviation."""

    def report_times(self, steps: Sequence[int]) -> list[float]:
        """Seconds from the start of a trial to each of its reports, whose steps are given."""
        rung_s = self.eval_s if self.rung_s is None else self.rung_s
        times = [self.startup_s + n * self.step_s + i * rung_s for i, n in enumerate(steps, 1)]
        return [*times[:-1], times[-1] - rung_s + self.eval_s]


@dataclass(frozen=True)
class SearchShape:
    """What is run, and how much of it at once."""

    trials: int
    total_steps: int
    eval_every: int
    concurrent: int = 1
    references: int = 0
    """Trials that run first and that no rule stops."""
    objectives: int = 1
    methods: int = 1
    """Methods that take turns, each with a stopping rule of its own."""
    setup_s: float = 0.0
    """Seconds before the first trial and after the last one, with the start of the workers."""

    @property
    def report_steps(self) -> tuple[int, ...]:
        """The steps at which a trial reports; the last one always."""
        return (*range(self.eval_every, self.total_steps, self.eval_every), self.total_steps)


@dataclass(frozen=True)
class Band:
    """The median and the middle 90 % of the replays."""

    low: float
    median: float
    high: float

    def __mul__(self, factor: float) -> Band:
        return Band(self.low * factor, self.median * factor, self.high * factor)


@dataclass(frozen=True)
class Estimate:
    """What a search is expected to take."""

    hours: Band
    """Wall clock from the start to the end of the search."""
    trial_hours: Band
    """Wall clock of all trials and references, added up."""
    steps: Band
    """Optimiser steps of all trials and references."""
    full_trials: Band
    """Trials that reach their last step, without references."""
    report_steps: tuple[int, ...]
    reached: tuple[float, ...]
    """For each of those steps, the mean number of trials that reach it."""

    def trials_at(self, step: int) -> float:
        """Number of trials that report at this step, or at the first report after it."""
        return self.reached[bisect_left(self.report_steps, step)]


@dataclass(frozen=True)
class Replay:
    """What one replayed search took."""

    seconds: float
    trial_seconds: float
    steps: int
    reports: tuple[int, ...]
    """Number of reports of each trial."""


def estimate(
    shape: SearchShape,
    cost: TrialCost,
    new_rule: Callable[[], Halving | None],
    *,
    replays: int = REPLAYS,
    seed: int = 0,
) -> Estimate:
    """Replay the search with values and speeds drawn from the seed.

    Args:
        new_rule: makes a fresh rule of one method, or None if no trial is stopped.
    """
    steps = shape.report_steps
    progress = np.array(steps)[None, :, None] / shape.total_steps
    done = []
    for child in np.random.SeedSequence(seed).spawn(replays):
        rng = np.random.default_rng(child)
        quality, noise = rng.standard_normal((2, shape.trials, 1, shape.objectives))
        values = RISE * progress + quality + noise * (1 - progress)  # (trials, reports, objectives)
        curves = [[tuple(point) for point in curve] for curve in values.tolist()]
        common = rng.standard_normal()
        speeds = np.exp(
            cost.spread * (common + rng.standard_normal(shape.trials + shape.references))
        )
        setup_s = shape.setup_s * float(np.exp(cost.spread * rng.standard_normal()))
        drawn = replace(shape, setup_s=setup_s)
        rules = [new_rule() for _ in range(shape.methods)]
        done.append(replay(drawn, cost, rules, curves, speeds.tolist()))

    def band(figures: Sequence[float]) -> Band:
        low, median, high = np.quantile(figures, QUANTILES).tolist()
        return Band(low, median, high)

    reports = np.array([run.reports for run in done])  # (replays, trials)
    return Estimate(
        hours=band([run.seconds / 3600 for run in done]),
        trial_hours=band([run.trial_seconds / 3600 for run in done]),
        steps=band([run.steps for run in done]),
        full_trials=band((reports == len(steps)).sum(axis=1).tolist()),
        report_steps=steps,
        reached=tuple(float((reports > i).sum(axis=1).mean()) for i in range(len(steps))),
    )


def replay(
    shape: SearchShape,
    cost: TrialCost,
    rules: Sequence[Halving | None],
    values: Sequence[Sequence[Values]],
    speeds: Sequence[float],
) -> Replay:
    """Replay one search: a queue of reports in the order of their time.

    Args:
        rules: of the methods, which take turns.
        values: the objectives of each trial at each report, more being better.
        speeds: factor on the durations of each trial; those of the references come last.
    """
    steps = shape.report_steps
    ends = cost.report_times(steps)
    reports, now, trial_seconds, done = [0] * shape.trials, shape.setup_s, 0.0, 0
    waiting = list(range(shape.trials - 1, -shape.references - 1, -1))  # negative: a reference
    queue: list[tuple[float, int, int, float]] = []  # time, trial, index of the report, start
    while queue or waiting:
        while waiting and len(queue) < shape.concurrent:
            trial = waiting.pop()
            heapq.heappush(queue, (now + ends[0] * speeds[trial], trial, 0, now))
        now, trial, index, began = heapq.heappop(queue)
        goes_on = index + 1 < len(steps)
        if trial >= 0:
            reports[trial] += 1
            rule = rules[trial % len(rules)]
            if rule is not None and not rule.should_continue(
                trial, steps[index], values[trial][index]
            ):
                goes_on = False
        if goes_on:
            end = began + ends[index + 1] * speeds[trial]
            heapq.heappush(queue, (end, trial, index + 1, began))
        else:
            trial_seconds += now - began
            done += steps[index]
    return Replay(now, trial_seconds, done, tuple(reports))
