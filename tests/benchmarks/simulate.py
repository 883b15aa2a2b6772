"""How good is what a search finds for its cost? `python -m tests.benchmarks.simulate`

Runs searches in simulated time over surfaces that were fitted to the recorded curves of
`curves.parquet` (see `surface`), through the same searcher, scheduler and prior objects that a real
search uses. After 5, 10 and 20 full trials' worth of device time, the finished trial with the best
*observed* objective is recommended, or that of the rule `expected`. Its *true* regret is what its
point misses of the best point's objective on the surface, in percentage points.

- Reports deviate from the surface by the noise of the recorded trainings times `--noise`. The noise
  of a table with one seed a point is that of the fit, which may be too small; its standard
  deviation is printed first.
- A search pays for the evaluations that its scheduler needs: those at its rungs and the one at the
  last step. Steps and evaluations cost what they cost at the median of the recording.
- The start of a trial costs `--start-seconds`, and `--process-seconds` in addition if it starts
  processes: the first trial of each device, and every trial of Ray's own searches. Starts are part
  of the time of a search, but not of the full trials in which that time is counted. The time in
  which a sampler finds its next point is not charged.
- Contenders with a prior begin at its centre, which is so far from the best point of the surface as
  `--distances` says, and at three points around it, N(centre, 0.2) in the unit cube, in a direction
  drawn for each seed. The points are the same for all.
- "x random" is the number of trials that random search needs for the same mean regret, over the
  budget, and "x Ray's pair" the number of full trials that Ray's OptunaSearch + ASHA needs from the
  same points of the prior. More than 1 is better. Both have 100. If their regret is
  not as low by then, the number is too small.

Intervals are 95 % percentile bootstraps over seeds, which are common to all contenders.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import optuna
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.contenders import (
    CONTENDERS,
    OURS,
    RANDOM,
    STOCK,
    Contender,
    Ours,
    Problem,
)
from tests.benchmarks.curve_table import Costs, read_table
from tests.benchmarks.record_curves import CURVES, RAW
from tests.benchmarks.simulator import simulate
from tests.benchmarks.surface import SimulatedTrainings, Surfaces, prior_center
from trainers.config import TrialConfig
from tuning.algorithms.objectives import Objective, sampler_objectives
from tuning.config.prior import PriorConfig, prior_points
from tuning.config.validation import load_config

BUDGETS = (5, 10, 20)
"""Full trials."""
REFERENCES = (RANDOM, STOCK)
"""Contenders with whose budgets those of the others are compared."""
REFERENCE_TRIALS = 100
"""Full trials of a reference."""
RESAMPLES = 10_000
EVERYWHERE = ("random, prior", STOCK, "TPE, prior", OURS)
"""Contenders whose prior is tried at every distance, the others with a prior at one."""


@dataclass(frozen=True)
class Setting:
    """What is the same for all searches of one comparison."""

    problem: Problem
    surfaces: Surfaces
    costs: Costs
    gpus: int
    raw_surfaces: Surfaces | None = None
    """With raw weights before the last step, for contenders that report those; None if the table
    has only one kind of weights."""

    @property
    def full_trial(self) -> float:
        """GPU-seconds of a trial that is evaluated at its end alone, without its start."""
        return self.costs.interval(self.problem.total_steps)

    def surfaces_of(self, contender: Contender) -> Surfaces:
        """What its trials report.

        Raises:
            ValueError: the table lacks it at a step where the contender's trials report.
        """
        surfaces = self.raw_surfaces if contender.raw_rungs else self.surfaces
        known = surfaces.steps if surfaces else ()
        if missing := sorted(set(contender.evaluate_at(self.problem)) - set(known)):
            weights = "raw weights" if contender.raw_rungs else "evaluations"
            raise ValueError(f"{contender.name}: the table has no {weights} at steps {missing}")
        assert surfaces is not None
        return surfaces


def regrets(name: str, distance: float | None, seed: int, setting: Setting) -> np.ndarray:
    """True regret of what a search recommends after each full trial's worth of time.

    Args:
        distance: of the prior's centre; None for a search without.

    Returns:
        After 1, 2, ... full trials, up to the largest of BUDGETS, or REFERENCE_TRIALS for one of
        REFERENCES. NaN before the first trial has finished.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # Optuna's, of features that it calls experimental
    torch.set_num_threads(1)
    contender, problem, costs = CONTENDERS[name], setting.problem, setting.costs
    surfaces = setting.surfaces_of(contender)
    if name.startswith("Ray's"):
        costs = replace(costs, start_seconds=costs.start_seconds + costs.process_seconds)
        costs = replace(costs, process_seconds=0.0)
    if distance is not None:
        problem = replace(problem, points=start_points(surfaces, distance, seed))
    searcher, scheduler = contender.create(problem, seed)
    trainings = SimulatedTrainings(surfaces, np.random.default_rng((seed, 1)))
    steps = contender.evaluate_at(problem)
    budget = REFERENCE_TRIALS if name in REFERENCES else BUDGETS[-1]
    found, observed, best = np.full(budget, np.nan), -np.inf, 0
    expects = searcher if contender.by_expectation and isinstance(searcher, Ours) else None
    for ended in simulate(searcher, scheduler, trainings, costs, steps, setting.gpus):
        index = int(np.ceil(ended.seconds * setting.gpus / setting.full_trial - 1e-9)) - 1
        if index >= budget:
            break
        if ended.outcome != "finished":
            continue
        value = problem.objective.signed(ended.result[problem.objective.metric])
        if value > observed:
            observed, best = value, ended.configuration
        expected = expects.expected_best() if expects else None
        chosen = best if expected is None else expected  # trainings have the numbers of trials
        found[index:] = surfaces.best - trainings.truths[chosen]
    return found


def start_points(
    surfaces: Surfaces, distance: float, seed: int
) -> tuple[dict[str, bool | int | float | str], ...]:
    """The points of a prior that is off by that distance."""
    center = prior_center(surfaces, distance, np.random.default_rng((seed, 2)))
    prior = PriorConfig(center=center)
    parameters = surfaces.space.parameters
    return tuple(prior_points(prior, seed, None, parameters, {}, TrialConfig()))


def budget_for(regret: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Full trials after which a reference's mean regret is as low, (samples,).

    Args:
        regret: mean regret of a contender, (samples,).
        reference: mean regret of the reference after 1, 2, ... full trials, (samples, trials).
    """
    arrived = reference <= regret[:, None]
    return np.where(arrived.any(axis=1), arrived.argmax(axis=1) + 1, reference.shape[1])


def summary(found: dict[tuple[str, float | None], np.ndarray]) -> Table:
    """Mean regrets, and the budgets that the references need for them, with intervals.

    Args:
        found: by contender and distance of the prior, (seeds, trials).
    """
    shown = Table(title="True regret of the recommended trial, percentage points")
    columns = [f"{title}@{b}" for title in ("", "x random ", "x Ray's pair ") for b in BUDGETS]
    for title in ("", "prior off by", *columns):
        shown.add_column(title, justify="right" if title else "left")
    seeds = len(found[RANDOM, None])
    draws = np.random.default_rng(0).integers(seeds, size=(RESAMPLES, seeds))
    counts = np.array([np.bincount(draw, minlength=seeds) for draw in draws])  # (samples, seeds)
    # Mean regrets of all seeds, followed by those of the samples, (1 + samples, trials).
    means = {job: np.vstack([of.mean(axis=0), counts @ of / seeds]) for job, of in found.items()}
    for (name, distance), of in means.items():
        cells = [with_interval(of[:, budget - 1], ".2f") for budget in BUDGETS]
        for reference in (means[RANDOM, None], means.get((STOCK, distance))):
            for budget in BUDGETS:
                regret = of[:, budget - 1]
                if reference is None or np.isnan(regret).any():
                    cells.append("-")
                else:
                    cells.append(with_interval(budget_for(regret, reference) / budget, ".1f"))
        shown.add_row(name, "" if distance is None else f"{distance:g}", *cells)
    shown.caption = (
        f"{seeds} seeds, 95 % intervals; random and Ray's pair have {REFERENCE_TRIALS} trials"
    )
    return shown


def with_interval(values: np.ndarray, digits: str) -> str:
    """A value and the 95 % interval of the bootstrap samples that follow it; "-" if one is NaN."""
    if np.isnan(values).any():  # some searches have no finished trial yet
        return "-"
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return f"{values[0]:{digits}} [{low:{digits}}, {high:{digits}}]"


def describe_noise(surfaces: Surfaces, factor: float) -> str:
    """One sentence: the noise of the objective at the last step, and where it comes from."""
    at_best = surfaces.noise_at(surfaces.best)[:, -len(surfaces.metrics)]
    source = "repeated seeds" if surfaces.has_repeated_seeds else "the fit of the surface"
    times = "" if factor == 1 else f", times {factor:g}"
    return (
        f"Noise of the objective at the last step: standard deviation {surfaces.noise.std():.2f}, "
        f"near the best point {at_best.std():.2f}, from {source}{times}."
    )


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objective", default="val/mean_acc", help="a metric of the table")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--grace-steps", type=int, default=60)
    parser.add_argument("--reduction-factor", type=float, default=3)
    parser.add_argument("--start-seconds", type=float, default=0.0)
    parser.add_argument("--process-seconds", type=float, default=0.0)
    parser.add_argument("--distances", nargs="+", type=float, default=[0, 0.1, 0.2, 0.4])
    parser.add_argument("--noise", type=float, default=1.0, help="factor of all deviations")
    parser.add_argument("--parts-at", type=float, default=0.2, help="distance of the others")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--curves", type=Path, default=CURVES)
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args(argv)


def read_setting(arguments: argparse.Namespace) -> Setting:
    """The comparison that the command line asks for."""
    space = load_config("quickstart", check=False).search_space()
    rows = pq.read_table(arguments.curves, columns=list(space.parameters)).to_pylist()
    # A parameter that was fixed in the recording is not searched.
    varied = {k: p for k, p in space.parameters.items() if len({row[k] for row in rows}) > 1}
    space = space.model_copy(update={"parameters": varied, "initial_points": []})
    table, costs = read_table(arguments.curves, space)
    objective = Objective(arguments.objective)
    told = sampler_objectives("auto", [objective])
    metrics = (objective.metric, *(o.metric for o in told))
    surfaces = Surfaces(table, metrics, arguments.noise)
    raw = table.of_weights(RAW)
    raw_surfaces = Surfaces(raw, metrics, arguments.noise) if any(raw.curves) else None
    problem = Problem(
        space,
        objective,
        table.total_steps,
        surfaces.steps,
        arguments.grace_steps,
        arguments.reduction_factor,
        trials=BUDGETS[-1],
    )
    starts = {
        "start_seconds": arguments.start_seconds,
        "process_seconds": arguments.process_seconds,
    }
    return Setting(problem, surfaces, replace(costs, **starts), arguments.gpus, raw_surfaces)


@cache
def recorded_setting() -> Setting:
    """The comparison without options, whose surfaces take seconds to fit."""
    return read_setting(parse_arguments([]))


def main(argv: Sequence[str] = tuple(sys.argv[1:])) -> None:
    """Search and print the table."""
    arguments = parse_arguments(argv)
    setting, console = read_setting(arguments), Console(width=230)
    surfaces, space = setting.surfaces, setting.problem.space
    units = zip(space.parameters.items(), surfaces.best_point, strict=True)
    best = ", ".join(f"{key} {parameter.at(unit):.3g}" for (key, parameter), unit in units)  # type: ignore[union-attr]
    console.print(
        f"Best {arguments.objective} of the surface: {surfaces.best:.2f} at {best}. "
        f"A full trial takes {setting.full_trial:.1f} s."
    )
    console.print(describe_noise(surfaces, arguments.noise))
    jobs: list[tuple[str, float | None]] = []
    for name in dict.fromkeys((RANDOM, *arguments.contenders)):
        distances = arguments.distances if name in EVERYWHERE else [arguments.parts_at]
        setting.surfaces_of(CONTENDERS[name])  # before hours of work, if it is impossible
        jobs += [(name, d) for d in (distances if CONTENDERS[name].prior else [None])]
    found = {}
    # For libraries that the workers import: threads of several workers would wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
        began = time.perf_counter()
        futures = {
            job: [pool.submit(regrets, *job, seed, setting) for seed in range(arguments.seeds)]
            for job in jobs
        }
        for job, of in futures.items():
            found[job] = np.array([future.result() for future in of])
            print(f"{time.perf_counter() - began:5.0f} s  {job}", flush=True)
    console.print(summary(found))


if __name__ == "__main__":
    main()
