"""How good is what a search finds for its cost? `python -m tests.benchmarks.simulate FILE`

Runs searches in simulated time over surfaces that were fitted to the recorded curves of a file of
`record_curves` (see `surface`), through the same searcher, scheduler and prior objects that a real
search uses. After 1, 3, 5, 10, 13, 16 and 20 trials' worth of device time, the point with the best
*observed* objective is recommended, by its mean if it was trained with several seeds. Its *true*
regret is what it misses of the best point of any line, in percentage points. `--shows error` is
what the observed objective exceeds the true one by (the winner's curse), `trainings` their number.

- The trials of a contender report the best point of their lines, or, with "no line", the end of the
  training; the unit of time is a trial with its line, so without it a search has more trials.
- Reports deviate from the surface as recorded trainings deviate between their seeds.
- A search pays for the evaluations that its scheduler needs: those at its rungs and the one at the
  last step. Steps and evaluations cost what they cost at the median of the recording.
- The start of a trial costs `--start-seconds`, and `--process-seconds` in addition if it starts
  processes: the first trial of each device, and every trial of Ray's own searches. Starts are part
  of the time of a search, but not of the trials in which that time is counted. The time in which a
  sampler finds its next point is not charged.
- Contenders with a prior begin at its centre, which is so far from the best end of a training as
  `--distances` says, in a direction drawn for each seed, and at the other points of a prior (see
  `prior_points`), by default as many and as far as in a search. The points are the same for all.

Intervals are 95 % percentile bootstraps over seeds, which are common to all contenders.
"""

import argparse
import os
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
import optuna
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from search_spaces import SearchSpace
from tests.benchmarks.contenders import CONTENDERS, Problem
from tests.benchmarks.curve_table import Costs, read_table
from tests.benchmarks.record_curves import SPACE
from tests.benchmarks.simulator import simulate
from tests.benchmarks.surface import SimulatedTrainings, Surfaces, prior_center
from trainers.config import TrialConfig
from trainers.evaluation.line import POINTS
from tuning.config.objectives import Objective, sampler_objectives
from tuning.config.prior import PriorConfig, prior_points
from tuning.config.validation import load_config

PLANE = Path(__file__).with_name("plane.parquet")
BUDGETS = (1, 3, 5, 10, 13, 16, 20)
"""Trials."""
RESAMPLES = 10_000


@dataclass(frozen=True)
class Setting:
    """What is the same for all searches of one comparison."""

    problem: Problem
    lines: Surfaces
    """Of the best points of lines."""
    ends: Surfaces
    costs: Costs
    gpus: int
    shows: Literal["regret", "error", "trainings"] = "regret"
    prior: PriorConfig = field(default_factory=PriorConfig)

    @property
    def best(self):
        """The best objective of any line."""
        return max(self.lines.best, self.ends.best)

    @property
    def trial_seconds(self):
        """GPU-seconds of a trial with its line and nothing else, without its start."""
        return self.costs.interval(self.problem.total_steps, last=True)

    def of(self, contender):
        """What its trials report and cost."""
        costs = self.costs
        if contender.name.startswith("Ray's"):  # each trial has processes of its own
            start = costs.start_seconds + costs.process_seconds
            costs = replace(costs, start_seconds=start, process_seconds=0.0)
        if contender.line:
            return self.lines, costs
        return self.ends, replace(costs, line_seconds=0.0)


def regrets(name, distance, seed, setting):
    """True regret (or what `shows` says) of a search after each trial's worth of time.

    Args:
        distance: of the prior's centre; None for a search without.

    Returns:
        After 1, 2, ... trials, up to the largest of BUDGETS. NaN before the first has finished.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # Optuna's, of features that it calls experimental
    torch.set_num_threads(1)
    contender, problem = CONTENDERS[name], setting.problem
    surfaces, costs = setting.of(contender)
    if distance is not None:
        problem = replace(problem, points=start_points(setting, distance, seed))
    searcher, scheduler = contender.create(problem, seed)
    trainings = SimulatedTrainings(surfaces, np.random.default_rng((seed, 1)))
    steps = contender.evaluate_at(problem)
    found = np.full(BUDGETS[-1], np.nan)
    observed: dict[int, list[float]] = {}
    for trained, ended in enumerate(
        simulate(searcher, scheduler, trainings, costs, steps, setting.gpus), 1
    ):
        index = int(np.ceil(ended.seconds * setting.gpus / setting.trial_seconds - 1e-9)) - 1
        if index >= len(found):
            break
        if ended.outcome != "finished":
            continue
        value = problem.objective.signed(ended.result[problem.objective.metric])
        observed.setdefault(ended.configuration, []).append(value)
        best = max(observed, key=lambda number: fmean(observed[number]))
        truth = trainings.truths[best]
        found[index:] = {
            "regret": setting.best - truth,
            "error": fmean(observed[best]) - truth,
            "trainings": trained,
        }[setting.shows]
    return found


def start_points(setting, distance, seed):
    """The points of a prior that is off by that distance."""
    center = {"prior": prior_center(setting.ends, distance, np.random.default_rng((seed, 2)))}
    parameters = setting.problem.space.parameters
    return tuple(prior_points(setting.prior, center, seed, parameters, {}, TrialConfig()))


def summary(found, title="True regret in percentage points"):
    """Means with their intervals.

    Args:
        found: by contender and distance of the prior, (seeds, trials).
    """
    seeds = len(next(iter(found.values())))
    shown = Table(title=f"{title}, {seeds} seeds, 95 % intervals")
    for title in ("", "prior off by", *(f"@{budget}" for budget in BUDGETS)):
        shown.add_column(title, justify="right" if title else "left")
    for (name, distance), of in found.items():
        cells = []
        for budget in BUDGETS:
            values = of[:, budget - 1]  # some searches may have no finished trial yet
            cells.append("-" if np.isnan(values).any() else mean_and_interval(values))
        shown.add_row(name, "" if distance is None else f"{distance:g}", *cells)
    return shown


def differences(found, against):
    """The summary of each other contender less that one, with the same prior and seeds."""
    paired = {
        (f"{name} - {against}", distance): of - found[against, distance]
        for (name, distance), of in found.items()
        if name != against and (against, distance) in found
    }
    return summary(paired, "Paired differences")


def mean_and_interval(values):
    """A mean over seeds and its 95 % percentile bootstrap."""
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--objective", default="val/mean_acc", help="a metric of the file")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--shows", choices=["regret", "error", "trainings"], default="regret")
    parser.add_argument("--gpus", type=int, default=1)
    prior = PriorConfig()
    parser.add_argument("--points", type=int, default=prior.points, help="of a prior")
    parser.add_argument("--width", type=float, default=prior.width, help="of a prior")
    parser.add_argument("--grace-steps", type=int, default=60)
    parser.add_argument("--reduction-factor", type=int, default=3)
    parser.add_argument("--start-seconds", type=float, default=0.0)
    parser.add_argument("--process-seconds", type=float, default=0.0)
    parser.add_argument("--distances", nargs="+", type=float, default=[0, 0.2, 0.4])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--against", choices=CONTENDERS, help="adds paired differences to it")
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args(argv)


def read_setting(arguments):
    recorded = (pq.read_metadata(arguments.file).metadata or {}).get(SPACE)
    if recorded:
        space = SearchSpace.model_validate_json(recorded)
    else:  # of a file that was recorded before it noted its space
        space = load_config("quickstart", check=False).search_space()
    rows = pq.read_table(arguments.file, columns=list(space.parameters)).to_pylist()
    # A parameter that was fixed in the recording is not searched.
    varied = {k: p for k, p in space.parameters.items() if len({row[k] for row in rows}) > 1}
    space = space.model_copy(update={"parameters": varied, "initial_points": []})
    table, costs = read_table(arguments.file, space)
    objective = Objective(arguments.objective)
    metrics = (objective.metric, *(o.metric for o in sampler_objectives("auto", [objective])))
    problem = Problem(
        space,
        objective,
        table.total_steps,
        arguments.grace_steps,
        arguments.reduction_factor,
        trials=BUDGETS[-1],
    )
    starts = {
        "start_seconds": arguments.start_seconds,
        "process_seconds": arguments.process_seconds,
    }
    points = tuple(f"line/{a:g}/{objective.metric}" for a in (0, *POINTS, 1))
    lines, ends = Surfaces(table, (*metrics, *points)), Surfaces(table.at_ends(), metrics)
    prior = PriorConfig(points=arguments.points, width=arguments.width)
    costs = replace(costs, **starts)
    return Setting(problem, lines, ends, costs, arguments.gpus, arguments.shows, prior)


@cache
def recorded_setting():
    """That on the domain of the quickstart, whose surfaces take seconds to fit."""
    return read_setting(parse_arguments([str(PLANE)]))


def main(argv=tuple(sys.argv[1:])):
    arguments = parse_arguments(argv)
    setting, console = read_setting(arguments), Console(width=200)
    space = setting.problem.space
    for title, surfaces in (("lines", setting.lines), ("ends", setting.ends)):
        units = zip(space.parameters.items(), surfaces.best_point, strict=True)
        point = ", ".join(f"{key} {parameter.at(unit):.3g}" for (key, parameter), unit in units)
        noise = surfaces.noise_at(surfaces.best)[:, -len(surfaces.metrics)].std()
        console.print(
            f"Best {arguments.objective} of the {title}: {surfaces.best:.2f} at {point}; standard "
            f"deviation between seeds near it: {noise:.2f}."
        )
    with_line, costs = setting.trial_seconds, setting.costs
    console.print(
        f"A trial takes {with_line:.1f} s, {costs.line_seconds:.1f} s of it for its line."
    )
    jobs = [
        (name, distance)
        for name in arguments.contenders
        for distance in (arguments.distances if CONTENDERS[name].prior else [None])
    ]
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
    titles = {"error": "Observed less true objective", "trainings": "Trainings"}
    console.print(summary(found, *filter(None, [titles.get(arguments.shows)])))
    if arguments.against:
        console.print(differences(found, arguments.against))


if __name__ == "__main__":
    main()
