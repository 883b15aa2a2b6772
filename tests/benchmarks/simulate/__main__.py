"""How good is what a search finds? `python -m tests.benchmarks.simulate clipart sketch`

Searches of 20 trials on recorded trainings: the studies of this project propose, and a surface
through the trainings answers (see `surface`). After 5, 10 and 20 trials, the trial with the best
*observed* objective is recommended. Its *regret* is what its *true* objective misses of the best of
the surface, in percentage points.

Contenders are the samplers of `search.sampler.name`, and those of Optuna as `module:Class`. They
begin at the points of the default prior, the same for all, whose centre is so far from the best
point as `--distances` says, as a share of each (log) range, in a direction drawn for each seed.
`random` has no prior. Intervals are 95 % percentile bootstraps over seeds. `regrets.csv` has what
`--seeds 20 --out` wrote of all tables.
"""

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from tests.benchmarks.simulate.surface import NLL, OBJECTIVE, Surface, read_table
from trainers.config import TrialConfig
from tuning.algorithms.studies import create_studies, quiet_optuna
from tuning.config.objectives import Objective
from tuning.config.prior import PriorConfig, prior_points
from tuning.config.schema import SamplerConfig
from tuning.log.records import STEP, trial_name
from tuning.results.goal import Goal

FOLDER = Path(__file__).parent
TABLES = [path.stem for path in sorted(FOLDER.glob("*.parquet"))]
BUDGETS = (5, 10, 20)
"""Trials."""
GOAL = Goal((Objective(OBJECTIVE),), nll=Objective(NLL, "min"))
RESAMPLES = 10_000


def create_sampler(name, seed):
    """A sampler of the configuration, or an object of Optuna for `module:Class`."""
    module, _, kind = name.rpartition(":")
    if module:
        return getattr(import_module(module), kind)(seed=seed)
    return SamplerConfig(name=name, seed=seed)


def regrets(surface, name, distance, seed):
    """True regret of the recommended trial after 1, 2, ... trials of one search.

    Args:
        distance: of the prior's centre from the best point; None for a search without a prior.
    """
    points = []
    if distance is not None:
        center = {"prior": surface.center(distance, np.random.default_rng((seed, 2)))}
        parameters = surface.space.parameters
        points = prior_points(PriorConfig(), center, seed, parameters, {}, TrialConfig())
    space = surface.space.model_copy(update={"initial_points": points})
    studies = create_studies(
        GOAL, {None: space}, create_sampler(name, seed), max(BUDGETS), "simulated"
    )
    studies.enqueue_first_points()
    rng = np.random.default_rng((seed, 1))
    truths, observed = [], []
    for number in range(max(BUDGETS)):
        record = studies.propose(number, trial_name(number))
        truth, metrics = surface.draw(record.params, rng)
        truths.append(truth)
        observed.append(metrics[OBJECTIVE])
        report = {STEP: 1, **metrics}
        studies.trial_ended(record.with_report(report).with_end("finished", at=0.0))
    best = [int(np.argmax(observed[: n + 1])) for n in range(len(observed))]
    return surface.best - np.array(truths)[best]


def mean_and_interval(values):
    """A mean over seeds and its 95 % percentile bootstrap."""
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def summary(title, found):
    """Means with their intervals after each of `BUDGETS`.

    Args:
        found: (name, distance) -> regrets or their differences, (seeds, trials).
    """
    shown = Table("", "prior off by", *(f"{n} trials" for n in BUDGETS), title=title)
    for (name, distance), of in found.items():
        cells = [mean_and_interval(of[:, n - 1]) for n in BUDGETS]
        shown.add_row(name, "" if distance is None else f"{distance:g}", *cells)
    return shown


def differences(found, against):
    """Regrets less those of one contender, by seed; of `random` at each distance of the others."""
    return {
        (f"{name} - {against}", distance): of - base
        for (name, distance), of in found.items()
        if name != against
        and (base := found.get((against, distance), found.get((against, None)))) is not None
    }


def main(argv=tuple(sys.argv[1:])):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", choices=TABLES)
    parser.add_argument("--contenders", nargs="+", default=["auto", "tpe", "random"])
    parser.add_argument("--against", help="a contender: adds paired differences to it")
    parser.add_argument("--distances", nargs="+", type=float, default=[0.2, 0.4])
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--out", type=Path, help="a CSV file of all regrets")
    arguments = parser.parse_args(argv)
    console, rows = Console(width=110), []
    for table in arguments.tables:
        began = time.process_time()
        surface, found = Surface(*read_table(FOLDER / f"{table}.parquet")), {}
        with quiet_optuna():
            for name in arguments.contenders:
                for distance in [None] if name == "random" else arguments.distances:
                    of = [regrets(surface, name, distance, seed) for seed in range(arguments.seeds)]
                    found[name, distance] = np.array(of)
                    rows += [
                        (table, name, distance, seed, *one[np.array(BUDGETS) - 1].round(4))
                        for seed, one in enumerate(of)
                    ]
        seconds = time.process_time() - began
        title = f"{table}: true regret, {arguments.seeds} searches, {seconds:.0f} CPU-seconds"
        console.print(summary(title, found))
        if arguments.against:
            paired = differences(found, arguments.against)
            console.print(summary(f"{table}: paired differences", paired))
    if arguments.out:
        columns = ["table", "sampler", "distance", "seed", *map(str, BUDGETS)]
        pd.DataFrame(rows, columns=columns).to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
