"""Where does `search.budget.worth` end a search? `python -m tests.benchmarks.worth FILE`

Runs the default search of `simulate` for 40 trials, asks after each how much the next is expected
to gain (`expected_gain`, as a real search does), and looks up where each threshold would have ended
it. Beside them stand fixed numbers of trials. A trial's hours are those of its recording, on one
core, so thresholds are in points per CPU-hour. Intervals are as in `simulate`.
"""

import argparse
import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import optuna
import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.contenders import CONTENDERS, OURS
from tests.benchmarks.simulate import mean_and_interval, parse_arguments, read_setting, start_points
from tests.benchmarks.simulator import simulate
from tests.benchmarks.surface import SimulatedTrainings
from tuning.algorithms.expected_gain import expected_gain
from tuning.algorithms.pruning import LEAST_FINISHED

TRIALS, FIXED = 40, (10, 20, 40)
WORTH = (100.0, 30.0, 10.0, 3.0, 1.0)


def search(seed, distance, setting):
    """Regret after each trial, and what the next was expected to gain, (2, trials)."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # Optuna's, of features that it calls experimental
    torch.set_num_threads(1)
    points = start_points(setting, distance, seed)
    problem = replace(setting.problem, points=points, trials=TRIALS)
    contender = CONTENDERS[OURS]
    searcher, scheduler = contender.create(problem, seed)
    surfaces, costs = setting.of(contender)
    trainings = SimulatedTrainings(surfaces, np.random.default_rng((seed, 1)))
    found = np.full((2, TRIALS), np.inf)
    observed, best = -np.inf, 0
    steps = contender.evaluate_at(problem)
    ended = simulate(searcher, scheduler, trainings, costs, steps, gpus=1)
    for number, trial in zip(range(TRIALS), ended, strict=False):
        value = problem.objective.signed(trial.result[problem.objective.metric])
        if value > observed:
            observed, best = value, trial.configuration
        found[0, number] = setting.best - trainings.truths[best]
        if number + 1 >= LEAST_FINISHED:
            found[1, number] = expected_gain(
                searcher.search, problem.space, list(searcher.records.values())
            )
    return found


def main(argv=tuple(sys.argv[1:])):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--distances", nargs="+", type=float, default=[0, 0.4])
    arguments = parser.parse_args(argv)
    setting = read_setting(parse_arguments([str(arguments.file)]))
    hours = setting.trial_seconds / 3600
    shown = Table(title=f"{arguments.seeds} seeds, 95 % intervals; a trial takes {hours:.4f} h")
    for title in ("prior off by", "ends", "trials", "CPU-hours", "true regret"):
        shown.add_column(title, justify="left" if title == "ends" else "right")
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for distance in arguments.distances:
            one = partial(search, distance=distance, setting=setting)
            found = np.array(list(pool.map(one, range(arguments.seeds))))  # (seeds, 2, trials)
            rules = {f"after {n}": np.full(len(found), n) for n in FIXED}
            for worth in WORTH:
                below = found[:, 1] < worth * hours
                ends = np.where(below.any(axis=1), below.argmax(axis=1) + 1, TRIALS)
                rules[f"worth {worth:g}"] = ends
            for name, ends in rules.items():
                regret = np.take_along_axis(found[:, 0], ends[:, None] - 1, axis=1)[:, 0]
                used, spent = mean_and_interval(ends), f"{ends.mean() * hours:.2f}"
                shown.add_row(f"{distance:g}", name, used, spent, mean_and_interval(regret))
    Console(width=120).print(shown)


if __name__ == "__main__":
    main()
