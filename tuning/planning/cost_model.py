"""What a search costs, by playing it through many times: arithmetic alone, no Ray, no clock.

Which trials stop early depends on values that nobody knows before the search, so they are drawn: at
step t of T a trial has the value

    rise * t / T + quality + noise * (1 - t / T),      quality, noise ~ N(0, 1) for each trial,

of which early values tell something about the last one, and later values more. The same rules that
stop real trials stop these, in the order in which reports would come in, with so many at once.

Two things make the band of an estimate: who is stopped, and how long a step really takes. For the
second, all times of one played search are multiplied by exp(s / sqrt(n) * t) with t of Student's
distribution (n - 1 degrees of freedom), since the median of n measured times with relative spread s
may be off by that much; and those of each trial by exp(s * z), z ~ N(0, 1), as if a slow or a quick
stretch of the measurement lasted for a whole trial.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuning.algorithms.early_stopping import StoppingRule, Values

RISE = 1.0
"""How much better all trials get from first to last step, in deviations of their quality. A rule
that compares at equal steps does not see it; the median rule does."""
QUANTILES = (0.05, 0.5, 0.95)
MAX_REPEATS, MIN_REPEATS = 200, 40
"""Searches played for one estimate; fewer of large ones, in which chance evens out by itself."""
REPORTS = 200_000
"""Reports in all played searches together, more or less."""


@dataclass(frozen=True)
class TrialCost:
    """What a trial takes, in seconds of wall clock."""

    startup_s: float
    """Processes, imports, model, images, and their end again."""
    step_s: float
    eval_s: float
    """One evaluation of all validation splits, and the checkpoint that goes with it."""
    spread: float = 0.0
    """Standard deviation of the measured step times over their mean."""
    samples: int = 1
    """How many were measured."""

    def seconds(self, steps: int, evaluations: int) -> float:
        """Of a trial that did so much."""
        return self.startup_s + steps * self.step_s + evaluations * self.eval_s


@dataclass(frozen=True)
class SearchShape:
    """What is run, and how much of it at once."""

    trials: int
    total_steps: int
    eval_every: int
    concurrent: int = 1
    references: int = 0
    """Run first, in full; no rule hears of them."""
    objectives: int = 1
    setup_s: float = 0.0
    """Seconds before the first trial starts."""

    @property
    def report_steps(self) -> tuple[int, ...]:
        """The steps at which a trial reports; the last one always."""
        return (*range(self.eval_every, self.total_steps, self.eval_every), self.total_steps)


@dataclass(frozen=True)
class Band:
    """The median and the middle 90 % of what was played."""

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
    """Trials that reach their last step; no references."""
    report_steps: tuple[int, ...]
    reached: tuple[float, ...]
    """For each of those steps, how many trials get there, on average."""

    def trials_at(self, step: int) -> float:
        """How many trials report at this step or, if none does there, at the next one after it."""
        return self.reached[bisect_left(self.report_steps, step)]


@dataclass(frozen=True)
class Played:
    """What one played search took."""

    seconds: float
    """From its start to its end."""
    trial_seconds: float
    """Of all trials and references, added up."""
    steps: int
    reports: tuple[int, ...]
    """Of each trial, how many it made."""


def estimate(
    shape: SearchShape,
    cost: TrialCost,
    new_rule: Callable[[], StoppingRule | None],
    *,
    repeats: int | None = None,
    seed: int = 0,
) -> Estimate:
    """Play the search `repeats` times; equal arguments give equal estimates.

    Args:
        shape: of the search.
        cost: of its trials.
        new_rule: a rule that has heard nothing yet, or None where every trial runs to its end.
        repeats: by default as many as take a few seconds.
        seed: of the drawn values.
    """
    steps = shape.report_steps
    if repeats is None:
        # Ranking by several objectives takes far longer.
        one = shape.trials * len(steps) * shape.objectives**2
        repeats = min(MAX_REPEATS, max(MIN_REPEATS, REPORTS // one))
    played = []
    for child in np.random.SeedSequence(seed).spawn(repeats):
        rng = np.random.default_rng(child)
        values, speeds = draw_values(shape, rng), draw_speeds(shape, cost, rng)
        played.append(play(shape, cost, new_rule(), values, speeds))
    made = np.array([run.reports for run in played])  # (repeats, trials)
    return Estimate(
        hours=_band([run.seconds / 3600 for run in played]),
        trial_hours=_band([run.trial_seconds / 3600 for run in played]),
        steps=_band([float(run.steps) for run in played]),
        full_trials=_band([float(count) for count in (made == len(steps)).sum(axis=1)]),
        report_steps=steps,
        reached=tuple(float((made > i).sum(axis=1).mean()) for i in range(len(steps))),
    )


def play(
    shape: SearchShape,
    cost: TrialCost,
    rule: StoppingRule | None,
    values: Sequence[Sequence[Values]],
    speeds: Sequence[float],
) -> Played:
    """One search: a queue of reports in the order of their time.

    Args:
        shape: of the search.
        cost: of its trials.
        rule: that has heard nothing yet.
        values: of each trial at each report, the objectives, more being better.
        speeds: what the times of each trial are multiplied by; the references' stand at the end.
    """
    steps = shape.report_steps
    ends = [cost.seconds(step, i) for i, step in enumerate(steps, 1)]
    reports, now, trial_seconds, done = [0] * shape.trials, shape.setup_s, 0.0, 0
    waiting = iter(range(-shape.references, shape.trials))  # negative: a reference
    queue: list[tuple[float, int, int, float]] = []  # time, trial, index of the report, began

    def start() -> None:
        trial = next(waiting, None)
        if trial is not None:
            heapq.heappush(queue, (now + ends[0] * speeds[trial], trial, 0, now))

    for _ in range(shape.concurrent):
        start()
    while queue:
        now, trial, index, began = heapq.heappop(queue)
        goes_on = True
        if trial >= 0:
            reports[trial] += 1
            if rule is not None:
                goes_on = rule.should_continue(trial, steps[index], values[trial][index])
        if goes_on and index + 1 < len(steps):
            heapq.heappush(
                queue, (began + ends[index + 1] * speeds[trial], trial, index + 1, began)
            )
            continue
        trial_seconds += now - began
        done += steps[index]
        start()
    return Played(now, trial_seconds, done, tuple(reports))


def draw_values(shape: SearchShape, rng: np.random.Generator) -> list[list[Values]]:
    """The values of `play`, as the head of this module says."""
    progress = np.array(shape.report_steps)[None, :, None] / shape.total_steps
    quality, noise = rng.standard_normal((2, shape.trials, 1, shape.objectives))
    values = RISE * progress + quality + noise * (1 - progress)  # (trials, reports, objectives)
    return [[tuple(point) for point in curve] for curve in values.tolist()]


def draw_speeds(shape: SearchShape, cost: TrialCost, rng: np.random.Generator) -> list[float]:
    """The speeds of `play`, as the head of this module says."""
    common = rng.standard_t(max(2, cost.samples - 1)) / math.sqrt(cost.samples)
    own = rng.standard_normal(shape.trials + shape.references)
    speeds: NDArray[np.float64] = np.exp(cost.spread * (common + own))
    return speeds.tolist()


def _band(figures: list[float]) -> Band:
    low, median, high = np.quantile(figures, QUANTILES).tolist()
    return Band(low, median, high)
