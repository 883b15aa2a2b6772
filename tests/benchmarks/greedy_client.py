"""What is a single best figure worth? `python -m tests.benchmarks.greedy_client`

Three clients report what a search of 20 trials has found: the best objective of the search itself;
the best of all its trials on the test splits, which such a client reads for each; and what
`confirm` says of the trial with the best objective, its mean over five fresh seeds. *Optimism* is
what a report exceeds the true objective of its trial by, *regret* what this trial misses of the
best point. Searches are simulated as by `simulate`, on its surfaces of recorded trainings. Values
on the test splits and with fresh seeds deviate from the truth as those of the search do. The last
column is how often the 95 % interval over seeds of `confirm` contains the truth.

Below, the recorded confirmations on photographs: the best OOD accuracy of all 18 trainings with
fresh seeds of one search seed, on a half of the test images. Its optimism is measured on the other
half, with the other fresh seeds of the same configuration, as the mean over random halves.

Intervals are 95 % bootstraps over simulated searches, and Student's over the three recorded seeds.
"""

import argparse
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import torch

from tests.benchmarks import simulate
from tests.benchmarks.contenders import CONTENDERS, OURS
from tests.benchmarks.simulator import simulate as trials_of
from tests.benchmarks.surface import SimulatedTrainings
from tuning.runs.confirmation import estimate

HERE = Path(__file__).parent
TABLES = ("plane", "clipart", "sketch")
PHOTOGRAPHS = HERE / "photographs" / "results.parquet"
TRIALS, FRESH_SEEDS, DISTANCE, HALVES = 20, 5, 0.2, 500
CLIENTS = ("best of the search", "best on the test splits", "`confirm`")


def reports(setting, seed):
    """Optimism and regret of each client (3, 2), and whether the interval contains the truth."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # Optuna's, of features that it calls experimental
    torch.set_num_threads(1)
    contender, metric = CONTENDERS[OURS], setting.problem.objective.metric
    problem = replace(setting.problem, points=simulate.start_points(setting, DISTANCE, seed))
    surfaces, costs = setting.of(contender)
    trainings = SimulatedTrainings(surfaces, np.random.default_rng((seed, 1)))
    steps, rng = contender.evaluate_at(problem), np.random.default_rng((seed, 3))
    ended = trials_of(*contender.create(problem, seed), trainings, costs, steps)
    seen = {one.configuration: one.result[metric] for one in islice(ended, TRIALS)}
    points, truths = [np.array(point) for point in trainings.numbers], trainings.truths

    def fresh(trial):
        return surfaces.draw(points[trial], rng)[1][problem.total_steps][metric]

    tested = {trial: fresh(trial) for trial in seen}
    best, best_on_test = max(seen, key=seen.get), max(tested, key=tested.get)
    again = estimate([fresh(best) for _ in range(FRESH_SEEDS)])
    said = ((seen[best], best), (tested[best_on_test], best_on_test), (again.mean, best))
    found = [(value - truths[trial], setting.best - truths[trial]) for value, trial in said]
    return found, again.low <= truths[best] <= again.high


def optimism_on_photographs(of):
    """That of the best OOD accuracy among the trainings of one search seed."""
    of = of[(of["domain"] != "photo") & (of["row"] != "zero-shot")]
    of = of.sort_values(["row", "fresh_seed"])
    rows = of.drop_duplicates(["row", "fresh_seed"])["row"].to_numpy()
    right = [np.stack(domain["right"]).astype(float) for _, domain in of.groupby("domain")]
    rng, gaps = np.random.default_rng(0), []
    for _ in range(HALVES):
        sides = [rng.permutation(images.shape[1]) % 2 for images in right]
        reported, held_out = (
            100 * np.mean([i[:, s == side].mean(1) for i, s in zip(right, sides, strict=True)], 0)
            for side in (0, 1)
        )
        best = reported.argmax()
        others = (rows == rows[best]) & (np.arange(len(rows)) != best)
        gaps.append(reported[best] - held_out[others].mean())
    return float(np.mean(gaps))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    print("| trainings | client | optimism | regret | contained |\n|---|---|---|---|---|")
    with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
        for name in TABLES:
            file = str(HERE / f"{name}.parquet")
            setting = simulate.read_setting(simulate.parse_arguments([file]))
            done = [*pool.map(partial(reports, setting), range(arguments.seeds))]
            found = np.array([of_clients for of_clients, _ in done])  # (searches, clients, 2)
            for index, client in enumerate(CLIENTS):
                cells = [simulate.mean_and_interval(found[:, index, of]) for of in (0, 1)]
                share = f"{100 * np.mean([hit for _, hit in done]):.0f} %" * (index == 2)
                print("| " + " | ".join([name, client, *cells, share]) + " |", flush=True)
    results = pd.read_parquet(PHOTOGRAPHS)
    found = estimate([optimism_on_photographs(of) for _, of in results.groupby("seed")])
    shown = f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"
    print(f"| photographs | best on the test splits | {shown} | | |")


if __name__ == "__main__":
    main()
