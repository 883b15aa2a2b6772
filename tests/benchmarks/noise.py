"""What does a search know of its own noise? `python -m tests.benchmarks.noise FILE ...`

The first table has, for each file of `record_curves` and each metric, the standard deviation
between seeds, the standard deviation of the configurations' means, and the correlation of the
deviations of neighbouring configurations, which matters as all trials of a search have one seed;
all of the half with the better objective, and again for the moving average of the weights, where it
was recorded.

Then searches of 20 trials are simulated as by `simulate`. *One seed*: all trials and the reference
deviate as the trainings of one recorded seed, smoothly along the hyperparameters, plus a rest that
is drawn anew. *Own seeds*: each trial deviates as those of a seed of its own. The reference is
plain fine-tuning, for which the least weight of the space stands. After 8, 10 and 20 trainings:

- what `deviation_between_seeds` estimates, as a share of the true deviation (geometric mean, and
  the root mean square of its logarithm);
- true regret, and reported less true value, of the best observation, reported as it is and, from
  ten trials on, by `expected_value`; of the best mean of a Gaussian process through all trials; and
  of the better mean, where the last two trainings were second seeds of the best trial and of the
  runner-up;
- how many headlines claim a difference to the reference, and how many of these claims have the
  right sign in the true means: by the sentences of `conclusion`, for one seed of each, and where
  the last two trainings were second seeds of the best trial and of the reference.

Recorded seeds are few: a simulated seed is one of them, drawn anew for each search. Intervals are
95 % bootstraps over searches.
"""

import argparse
import os
import re
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import torch
from ray.tune.utils import flatten_dict
from scipy.spatial.distance import cdist
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from tests.benchmarks import simulate
from tests.benchmarks.contenders import CONTENDERS, OURS
from tests.benchmarks.curve_table import unit_point, without_collapse
from tests.benchmarks.record_curves import AVERAGED
from tests.benchmarks.simulator import simulate as trials_of
from tests.benchmarks.surface import DONORS, SimulatedTrainings, Surfaces
from trainers.evaluation.metrics import ID_ACC, MEAN_ACC, OOD_MEAN_ACC
from tuning.config.objectives import Objective
from tuning.runs.conclusion import conclusion
from tuning.runs.records import STEP, SearchRecord, TrialRecord, trial_name
from tuning.runs.seed_noise import (
    coordinates,
    deviation_between_seeds,
    expected_value,
    fit,
)

METRICS = (MEAN_ACC, ID_ACC, OOD_MEAN_ACC)
NLL = "val/mean_nll"
AFTER = (8, 10, 20)
DISTANCES = (0.2, 0.4)
SEEDS_OF_TRIALS = {"one seed": 1, "own seeds": AFTER[-1]}
REFERENCE = {"method.reg_weight": 0.01}
"""Where plain fine-tuning is taken from the surfaces."""
DRAWINGS = {"real": 800, **dict.fromkeys(("painting", "clipart", "infograph", "sketch"), 800)}
PHOTOGRAPHS = {"photo": 333, "art_painting": 420, "cartoon": 345, "sketch": 257}


class SeededSurfaces(Surfaces):
    """Surfaces on which a training deviates as those of one recorded seed do.

    The deviations of a seed are a Gaussian process with noise, whose kernel is that of the
    objective's. At other points than the recorded ones, its mean varies less than deviations do:
    what is missing in variance is drawn from configurations with a like objective.

    Args:
        rows: the last report of each training.
    """

    def __init__(self, table, metrics, rows):
        super().__init__(table, metrics)
        wide = rows.set_index(["configuration", "seed"])[[*metrics]].unstack("seed").dropna()
        values = wide.to_numpy().reshape(len(wide), len(metrics), -1).copy()  # (points, ., seeds)
        values[:, self._is_nll] = np.log(values[:, self._is_nll])
        self.seeds = values.shape[2]
        first = rows.drop_duplicates("configuration").set_index("configuration").loc[wide.index]
        self._at = np.array([unit_point(table.space, row) for row in first.to_dict("records")])
        of_seeds = values - values.mean(axis=2, keepdims=True)
        of_seeds *= np.sqrt(self.seeds / (self.seeds - 1))  # as they deviate from the true mean
        self._size = of_seeds.std(axis=(0, 2))[:, None]
        scaled = (of_seeds / self._size).reshape(len(wide), -1)
        lengths = [0.5] * self._at.shape[1]
        kernel = ConstantKernel(1, (1e-2, 10)) * Matern(lengths, (0.1, 5), nu=2.5)
        kernel = GaussianProcessRegressor(kernel + WhiteKernel(0.3, (1e-2, 2)))
        kernel = kernel.fit(self._at, scaled.reshape(of_seeds.shape)[:, 0]).kernel_
        self._smooth, self._inverse = kernel.k1, np.linalg.inv(kernel(self._at))
        self._solved, self._variance = self._inverse @ scaled, kernel.diag(self._at[:1])[0]
        self._drawn, self._ends = of_seeds, self.at(self._at)[:, -1, 0]

    def draw_seed(self, point, seed, rng):
        """What a training with this recorded seed might report at its end, (metrics,)."""
        truth = self.at(point[None])[0, -1]
        alike = np.argsort(np.abs(self._ends - truth[0]))[:DONORS]
        near = self._smooth(point[None], self._at)  # (1, points)
        explained = (near @ self._inverse @ near.T).item() / self._variance
        seen = truth + (near @ self._solved).reshape(-1, self.seeds)[:, seed] * self._size[:, 0]
        seen = seen + np.sqrt(1 - explained) * self._drawn[rng.choice(alike), :, seed]
        seen[self._is_nll] = np.exp(seen[self._is_nll])
        return seen


@dataclass
class SeededTrainings(SimulatedTrainings):
    """Trainings whose recorded seeds come in turn."""

    order: tuple[int, ...] = (0,)
    started: int = 0

    def start(self, config):
        point = unit_point(self.space, flatten_dict(dict(config), delimiter="."))
        seed = self.order[self.started % len(self.order)]
        seen = self.surfaces.draw_seed(point, seed, self.rng)
        self.started += 1
        number = self.numbers.setdefault(tuple(point), len(self.truths))
        self.truths += [self.surfaces.at(point[None])[0, -1, 0]] * (number == len(self.truths))
        curve = dict(zip(self.surfaces.metrics, seen.tolist(), strict=True))
        return number, {self.surfaces.total_steps: curve}


@dataclass(frozen=True)
class Trained:
    """A simulated trial or reference: reports with several seeds, and their true means."""

    record: TrialRecord
    truth: dict[str, float]
    again: tuple[dict[str, float], ...]
    """Reports with fresh seeds."""
    deviation: dict[str, float]
    """True one between seeds."""

    def with_seeds(self, number):
        """The record with so many fresh seeds."""
        reports = {seed: self.again[seed] for seed in range(number)}
        return replace(self.record, repetitions=reports)


def searched(setting, distance, seeds, seed):
    """The trials of one search in their order, and its reference."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # Optuna's, of features that it calls experimental
    torch.set_num_threads(1)
    surfaces, contender = setting.lines, CONTENDERS[OURS]
    problem = replace(setting.problem, points=simulate.start_points(setting, distance, seed))
    order = tuple(np.random.default_rng((seed, 5)).integers(surfaces.seeds, size=seeds))
    trainings = SeededTrainings(surfaces, np.random.default_rng((seed, 1)), order=order)
    searcher, scheduler = contender.create(problem, seed)
    steps, rng = contender.evaluate_at(problem), np.random.default_rng((seed, 7))
    ended = trials_of(searcher, scheduler, trainings, setting.costs, steps)

    def trained(record, params, report):
        point = unit_point(setting.problem.space, params)
        true = surfaces.at(point[None])[0, -1]
        noise = surfaces.noise_at(true[0])[:, -len(surfaces.metrics) :].std(axis=0)
        drawn = [surfaces.draw_seed(point, s, rng) for s in rng.integers(surfaces.seeds, size=2)]
        named = (dict(zip(surfaces.metrics, of.tolist(), strict=True)) for of in (true, noise))
        again = tuple(dict(zip(surfaces.metrics, of.tolist(), strict=True)) for of in drawn)
        ended = replace(record, outcome="finished", curve=({STEP: problem.total_steps, **report},))
        truth, deviation = named
        return Trained(ended, truth, again, deviation)

    trials = []
    for number, one in enumerate(islice(ended, AFTER[-1])):
        point = np.array(list(trainings.numbers)[one.configuration])
        units = zip(problem.space.parameters.items(), point, strict=True)
        params = {key: parameter.at(float(unit)) for (key, parameter), unit in units}
        record = TrialRecord(trial_name(number), number, "trial", params)
        report = {name: one.result[name] for name in surfaces.metrics}
        trials.append(trained(record, params, report))
    params = {**problem.points[0], **REFERENCE}
    drawn = surfaces.draw_seed(unit_point(problem.space, params), order[0], rng).tolist()
    report = dict(zip(surfaces.metrics, drawn, strict=True))
    return trials, trained(TrialRecord("ft", -1, "reference", {}), params, report)


def best_of(records):
    return max(range(len(records)), key=lambda number: records[number].last(MEAN_ACC))


def choices(search, trials, number):
    """How to choose after so many trainings -> trial and its reported value."""
    single = [one.record for one in trials[:number]]
    best, points = best_of(single), coordinates(single)
    _, means = fit(points, np.array([record.last(MEAN_ACC) for record in single]))
    found = {
        "best observation": (best, single[best].last(MEAN_ACC)),
        "best mean of a model": (int(means.argmax()), float(means.max())),
    }
    expected = expected_value(search, single)
    if number >= 10:  # else, and where many collapsed, nothing is stated but the observation
        value = single[best].last(MEAN_ACC) if expected is None else expected
        found["best observation, `expected_value`"] = best, value
    order = sorted(range(number - 2), key=lambda n: -single[n].last(MEAN_ACC))[:2]
    again = [trials[n].with_seeds(1) for n in order]
    better = best_of(again)
    found["second seeds"] = order[better], again[better].last(MEAN_ACC)
    return found


def claims(search, trials, reference, second_seeds):
    """Signs of the claimed differences (OOD, ID; 0 for none) and of the true ones.

    None if no trial is better than the reference.
    """
    records = [one.record for one in trials]
    best = best_of(records)
    if second_seeds:
        best = best_of(records[:-2])
        records = [*records[:best], trials[best].with_seeds(1), *records[best + 1 : -2]]
    headline = conclusion(search, [*records, reference.with_seeds(int(second_seeds))]).lines[0]
    found = re.match(r"trial-(\d+) has (.*)", headline)
    if found is None:
        return None
    best, pairs = int(found[1]), []
    for what, metric in (("OOD", OOD_MEAN_ACC), ("ID", ID_ACC)):
        claim = re.search(rf"(more|less) {what} accuracy", found[2])
        true = trials[best].truth[metric] - reference.truth[metric]
        pairs.append(({"more": 1, "less": -1}[claim[1]] if claim else 0, np.sign(true)))
    return pairs


def last_reports(path):
    rows = pd.DataFrame(without_collapse(pd.read_parquet(path).to_dict("records")))
    return rows.sort_values("step").groupby(["configuration", "seed"]).tail(1)


def deviations_of(rows, space):
    """A row for each metric: deviation between seeds, spread, likeness of neighbours, averaged."""
    objective = rows.pivot(index="configuration", columns="seed", values=MEAN_ACC).dropna()
    means = objective.mean(axis=1)
    better = means.index[means >= means.median()]
    first = rows.drop_duplicates("configuration").set_index("configuration").loc[better]
    at = np.array([unit_point(space, row) for row in first.to_dict("records")])
    distances = cdist(at, at)
    np.fill_diagonal(distances, np.inf)
    near = distances.argmin(axis=1)
    for metric in (*METRICS, NLL):
        cells = []
        for name in (metric, AVERAGED + metric):
            if name not in rows or rows[name].isna().all():
                continue
            values = rows.pivot(index="configuration", columns="seed", values=name).loc[better]
            values = np.log(values.to_numpy()) if metric == NLL else values.to_numpy()
            means = values.mean(axis=1, keepdims=True)
            off, freedom = values - means, len(values) * (values.shape[1] - 1)
            like = (off * off[near]).sum() / np.square(off).sum()
            sd = float(np.sqrt(np.square(off).sum() / freedom))
            cells += [means.mean(), sd, means.std(ddof=1), like]
        yield metric, cells


def setting_of(path):
    """Setting of the searches on a file, and its search record."""
    setting = simulate.read_setting(simulate.parse_arguments([str(path)]))
    table, _ = simulate.read_table(path, setting.problem.space)
    rows = last_reports(path)
    metrics = (MEAN_ACC, NLL, ID_ACC, OOD_MEAN_ACC)
    images = PHOTOGRAPHS if "ood_val/cartoon/acc" in rows else DRAWINGS
    search = SearchRecord(
        name=path.stem,
        total_steps=setting.problem.total_steps,
        budget_trials=AFTER[-1],
        objectives=(Objective(MEAN_ACC),),
        id_domain=next(iter(images)),
        ood_domains=tuple(images)[1:],
        zero_shot={name: float(rows[f"line/0/{name}"].mean()) for name in METRICS},
        config={"trial": {"method": {"name": "lipsum_ft"}}},
        run_folder=Path(),
        val_images=images,
    )
    return replace(setting, lines=SeededSurfaces(table, metrics, rows)), search, rows


def print_searches(name, setting, search, found):
    """Tables of the searches of one file: (kind of seeds, distance) -> searches."""
    interval = simulate.mean_and_interval
    for seeds in SEEDS_OF_TRIALS:
        searches = [one for distance in DISTANCES for one in found[seeds, distance]]
        for number in AFTER:
            label = f"{name}, {seeds}, {number}"
            units = [
                setting.problem.space.parameters[key].unit(value)
                for trials, _ in searches
                for one in trials[4:number]
                for key, value in one.record.params.items()
            ]
            ends = np.mean([min(unit, 1 - unit) < 0.01 for unit in units])
            print(f"| proposed values at the end of a range | {label} | {100 * ends:.0f} % |")
            cells = []
            for metric in METRICS:
                ratios = []
                for trials, _ in searches:
                    records = [one.record for one in trials[:number]]
                    true = trials[best_of(records)].deviation[metric]
                    ratios.append(np.log(deviation_between_seeds(search, records, metric) / true))
                ratios = np.array(ratios)
                spread = np.sqrt(np.square(ratios).mean())
                cells.append(f"{np.exp(ratios.mean()):.2f} ({spread:.2f})")
            print(f"| estimate | {label} | {' | '.join(cells)} |")
            by_choice = {}
            for trials, _ in searches:
                for choice, (best, value) in choices(search, trials, number).items():
                    truth = trials[best].truth[MEAN_ACC]
                    by_choice.setdefault(choice, []).append((setting.best - truth, value - truth))
            usual = np.array(by_choice["best observation"])
            for choice, values in by_choice.items():
                values = np.array(values)
                cells = [interval(of) for of in (values[:, 0], values[:, 1])]
                cells.append(interval(values[:, 0] - usual[:, 0]))
                print(f"| {choice} | {label} | {' | '.join(cells)} |")
            for second in (False, True):
                all_pairs = [claims(search, t[:number], ft, second) for t, ft in searches]
                pairs = [pair for of in all_pairs if of for pair in of]
                said = [(claim, true) for claim, true in pairs if claim]
                right = sum(claim == true for claim, true in said)
                share = sum(bool(of) and any(claim for claim, _ in of) for of in all_pairs)
                print(
                    f"| claims{', second seeds' * second} | {label} | {share} of {len(all_pairs)} "
                    f"headlines | {right} of {len(said)} right |",
                    flush=True,
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=20, help="searches for each distance")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    settings = {path.stem: setting_of(path) for path in arguments.files}
    for name, (setting, _, rows) in settings.items():
        for metric, cells in deviations_of(rows, setting.problem.space):
            print(f"| {name} | {metric} | {' | '.join(f'{cell:.3g}' for cell in cells)} |")
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
        for name, (setting, search, _) in settings.items():
            found = {
                (kind, distance): [
                    *pool.map(partial(searched, setting, distance, seeds), range(arguments.seeds))
                ]
                for kind, seeds in SEEDS_OF_TRIALS.items()
                for distance in DISTANCES
            }
            print_searches(name, setting, search, found)


if __name__ == "__main__":
    main()
