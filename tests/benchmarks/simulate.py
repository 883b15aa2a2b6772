"""How soon does a search find a good configuration? `python -m tests.benchmarks.simulate`

Replays searches against the recorded curves of `curves.parquet` in simulated time, through the same
searcher and scheduler objects that a real search uses, and counts the GPU-seconds until the first
trial that has run to its last step is within half a point of the best configuration of the table,
by the recorded validation accuracy at the last step that the searches maximise: the mean over the
OOD domains, or another `--objective`. GPU-seconds are the GPUs of the search times its clock.

- A proposal gets the curve of the nearest recorded configuration (see `curve_table`), with `--once`
  of the nearest that the search has not had.
- A search pays only for the evaluations that its scheduler needs: those at its rungs and the one at
  the last step. Random search without pruning pays for one a trial.
- Steps and evaluations cost what they cost at the median; starting a trial costs `--start-seconds`,
  by default nothing, which favours those that start many and stop them early.
- No contender is told a point to begin with. Rungs are the same for all that have some.
- A search that has not arrived at `--ceiling` counts as if it had arrived there; the table says how
  many did, and their true means are higher.

Intervals are 95 % percentile bootstraps over seeds; ratios are of means, resampled in pairs.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import optuna
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from tests.benchmarks.contenders import CONTENDERS, RANDOM, STOCK, Problem
from tests.benchmarks.curve_table import Costs, CurveTable, read_table
from tests.benchmarks.record_curves import CURVES
from tests.benchmarks.simulator import simulate
from tuning.algorithms.objectives import Objective
from tuning.config.validation import load_config

MARGIN = 0.5
"""Percentage points below the best configuration that are good enough."""
RESAMPLES = 10_000


@dataclass(frozen=True)
class Setting:
    """What is the same for all searches of one comparison."""

    problem: Problem
    table: CurveTable
    costs: Costs
    gpus: int
    once: bool
    """Whether a search gets each configuration of the table once at most."""
    ceiling: float
    """GPU-seconds at which a search ends, arrived or not."""


@dataclass(frozen=True)
class Trace:
    """What one search had found, and when."""

    seconds: np.ndarray
    """GPU-seconds at which a trial came to its last step, (finished,)."""
    regrets: np.ndarray
    """By how much the best of them so far misses the table's best, (finished,)."""
    trials: int
    """Started and ended until the ceiling."""

    def arrival(self, ceiling: float) -> float:
        """GPU-seconds until the regret is at most MARGIN; inf where it is not by the ceiling."""
        arrived = self.seconds[(self.regrets <= MARGIN) & (self.seconds <= ceiling)]
        return float(arrived.min(initial=np.inf))

    def regret_at(self, seconds: np.ndarray) -> np.ndarray:
        """The regret at those times; NaN before the first trial has finished."""
        index = np.searchsorted(self.seconds, seconds, side="right") - 1
        return np.where(index < 0, np.nan, self.regrets[index])


def search(name: str, seed: int, setting: Setting) -> Trace:
    """One simulated search, to its ceiling."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # Optuna's, of features that it calls experimental
    contender, problem, gpus = CONTENDERS[name], setting.problem, setting.gpus
    searcher, scheduler = contender.create(problem, seed)
    finals = setting.table.finals(problem.objective.metric)
    seconds, regrets, trials = [], [], 0
    steps = contender.evaluate_at(problem)
    for ended in simulate(
        searcher, scheduler, setting.table, setting.costs, steps, gpus, setting.once
    ):
        if ended.seconds * gpus > setting.ceiling:
            break
        trials += 1
        if ended.outcome == "finished":
            seconds.append(ended.seconds * gpus)
            regrets.append(finals.max() - finals[ended.configuration])
    return Trace(np.array(seconds), np.minimum.accumulate(np.array(regrets)), trials)


def replicates(seeds: int) -> np.ndarray:
    """Seeds drawn with replacement, (RESAMPLES, seeds); one draw for all, which pairs them."""
    return np.random.default_rng(0).integers(seeds, size=(RESAMPLES, seeds))


def summary(traces: dict[str, list[Trace]], ceiling: float) -> Table:
    """Medians, means and ratios, with intervals."""
    shown = Table(title=f"GPU-seconds until within {MARGIN} points of the best")
    for title in ("", "median", "mean", f"{RANDOM} / it", "Ray's / it", "censored", "trials"):
        shown.add_column(title, justify="left" if not title else "right")
    arrivals = {n: np.array([t.arrival(ceiling) for t in of]) for n, of in traces.items()}
    draws = replicates(len(next(iter(arrivals.values()))))
    for name, of in arrivals.items():
        capped = np.minimum(of, ceiling)
        samples = capped[draws]
        cells = [
            _with_interval(float(np.median(capped)), np.median(samples, axis=1), ".0f"),
            _with_interval(float(capped.mean()), samples.mean(axis=1), ".0f"),
        ]
        for other in (RANDOM, STOCK):
            if other not in arrivals or other == name:
                cells.append("")
                continue
            theirs = np.minimum(arrivals[other], ceiling)
            ratios = theirs[draws].mean(axis=1) / samples.mean(axis=1)
            cells.append(_with_interval(float(theirs.mean() / capped.mean()), ratios, ".2f"))
        censored = int(np.isinf(of).sum())
        trials = np.median([trace.trials for trace in traces[name]])
        shown.add_row(name, *cells, f"{censored}/{len(of)}", f"{trials:.0f}")
    shown.caption = f"95 % intervals over seeds; censored at {ceiling:.0f} GPU-seconds"
    return shown


def _with_interval(value: float, samples: np.ndarray, digits: str) -> str:
    low, high = np.percentile(samples, [2.5, 97.5])
    return f"{value:{digits}} [{low:{digits}}, {high:{digits}}]"


def figure(traces: dict[str, list[Trace]], setting: Setting) -> Figure:
    """Regret of the best so far over GPU-seconds: median, and the middle half of the seeds."""
    chart = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = chart.subplots()
    start = setting.costs.trial(setting.problem.total_steps) * setting.gpus
    grid = np.geomspace(start, setting.ceiling, 400)
    for index, (name, of) in enumerate(traces.items()):
        regrets = np.array([trace.regret_at(grid) for trace in of])
        begun = ~np.isnan(regrets).any(axis=0)  # all seeds have an incumbent
        low, middle, high = np.percentile(regrets[:, begun], [25, 50, 75], axis=0)
        axes.step(grid[begun], middle, where="post", color=f"C{index}", label=name)
        axes.fill_between(grid[begun], low, high, step="post", color=f"C{index}", alpha=0.08, lw=0)
    axes.axhline(MARGIN, color="0.5", lw=0.8, ls=":")
    axes.set(xscale="log", xlabel="simulated GPU-seconds", ylim=(0, 2))
    axes.set_ylabel(f"points below the best {setting.problem.objective.metric}")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return chart


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objective", default="ood_val/mean_acc", help="a metric of the table")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--grace-steps", type=int, default=15)
    parser.add_argument("--reduction-factor", type=float, default=3)
    parser.add_argument("--startup-trials", type=int, default=6)
    parser.add_argument("--start-seconds", type=float, default=0.0)
    parser.add_argument("--ceiling", type=float, default=2000, help="GPU-seconds of a search")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS)[:6])
    parser.add_argument("--curves", type=Path, default=CURVES)
    parser.add_argument("--figure", type=Path, help="a PNG file")
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args(argv)


def read_setting(arguments: argparse.Namespace) -> Setting:
    """The comparison that the command line asks for."""
    space = load_config("quickstart").search_space()
    table, costs = read_table(arguments.curves, space)
    steps = sorted({step for curve in table.curves for step in curve})
    problem = Problem(
        space,
        Objective(arguments.objective),
        table.total_steps,
        tuple(steps),
        arguments.grace_steps,
        arguments.reduction_factor,
        arguments.startup_trials,
    )
    costs = replace(costs, start_seconds=arguments.start_seconds)
    return Setting(problem, table, costs, arguments.gpus, arguments.once, arguments.ceiling)


def main(argv: Sequence[str] = tuple(sys.argv[1:])) -> None:
    """Search, print the table, and draw the figure where asked."""
    arguments = parse_arguments(argv)
    setting, console = read_setting(arguments), Console(width=120)
    finals, costs = setting.table.finals(arguments.objective), setting.costs
    good = int((finals >= finals.max() - MARGIN).sum())
    console.print(
        f"{len(finals)} configurations, {good} of them within {MARGIN} points of the best, "
        f"{finals.max():.2f} %. A step takes {costs.step_seconds:.3f} s, an evaluation "
        f"{costs.eval_seconds:.2f} s, a whole trial "
        f"{costs.trial(setting.problem.total_steps):.1f} s."
    )
    correlations = setting.table.rank_correlations(arguments.objective)
    console.print(
        "Rank correlation with the last step, among the better half: "
        + ", ".join(f"{value:.2f} at step {step}" for step, value in correlations.items())
    )
    traces: dict[str, list[Trace]] = {}
    with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
        began = time.perf_counter()
        jobs = {
            name: [pool.submit(search, name, seed, setting) for seed in range(arguments.seeds)]
            for name in arguments.contenders
        }
        for name, of in jobs.items():
            traces[name] = [job.result() for job in of]
            print(f"{time.perf_counter() - began:5.0f} s  {name}", flush=True)
    console.print(summary(traces, setting.ceiling))
    if arguments.figure:
        figure(traces, setting).savefig(arguments.figure, dpi=150)


if __name__ == "__main__":
    main()
