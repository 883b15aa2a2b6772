"""Real searches beside the simulated ones: `python -m tests.benchmarks.real_searches --out FOLDER`

- `quickstart`: the ready configuration as it is, with ten seeds, and the same without lines. How
  often is its best trial within half a point of the best `val/mean_acc` of the surface that
  `simulate` uses?
- The others search for ten trials with five seeds each, from a prior that is off by 0.2 of the
  (log) ranges: this project; Ray's own OptunaSearch and ASHA around the same training in a plain
  function, with the same start points and the rung of the simulation; and random search without
  any.

The best trial of each of these searches, by its own validation objective, is trained again with
five seeds that no search has used. Their mean `val/mean_acc` is what the search was worth. Two
trials run at a time. Each search and each training is written to the folder, so the command may be
interrupted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import optuna
import ray
from ray import tune
from rich.console import Console
from rich.table import Table

from tests.benchmarks.contenders import CONTENDERS, STOCK
from tests.benchmarks.curve_table import unit_point
from tests.benchmarks.record_curves import record
from tests.benchmarks.simulate import Setting, recorded_setting
from tests.benchmarks.spread import spread
from tests.benchmarks.surface import prior_center
from trainers.data.data_root import resolve_root
from trainers.fine_tune import fine_tune
from tuning import load_config, run_search

METRIC, STEPS, RUNG = "val/mean_acc", 120, 60
TRIALS, SEEDS, DISTANCE, CLOSE = 10, 5, 0.2, 0.5
FRESH_SEEDS = range(1000, 1005)
QUICKSTART, OURS = "quickstart", "ours"
NO_LINE = "quickstart, no line"
Found = dict[str, Any]
"""`params` and `value` of the best trial, `steps` of all trials together, and `fresh`: the values
of the best trial's parameters with other seeds."""


def settings(seed, folder):
    """Of any search: two trials at a time, in a folder of its own, without the reference."""
    return [
        f"trial.seed={seed}",
        f"search.sampler.seed={seed}",
        f"search.storage={folder}",
        "search.resources.max_concurrent=2",
        "search.references=[]",
    ]


def with_prior(seed, setting):
    """The trials and the prior that the simulated searches have."""
    center = prior_center(setting.ends, DISTANCE, np.random.default_rng((seed, 2)))
    return [
        f"search.budget.trials={TRIALS}",
        f"search.prior.center={json.dumps(center)}",
    ]


def of_this_project(overrides):
    """A search by this project."""
    result = run_search(load_config("quickstart", overrides), console=Console(quiet=True))
    assert result.best is not None
    value = result.best.metrics[METRIC]
    steps = sum(trial.trained_steps for trial in result.history.records)
    seconds = sum(trial.seconds or 0.0 for trial in result.history.records)
    return {"params": result.best.params, "value": value, "steps": steps, "seconds": seconds}


def quickstart(seed, folder, setting):
    """The ready configuration."""
    return of_this_project(settings(seed, folder))


def without_line(seed, folder, setting):
    """The ready configuration, which takes the end of each training."""
    return of_this_project([*settings(seed, folder), "trial.eval.line=off"])


def ours(seed, folder, setting):
    """This project's search from the prior; no trial is stopped."""
    changes = [*with_prior(seed, setting), "search.scheduler={name: none}"]
    return of_this_project([*settings(seed, folder), *changes, f"trial.eval.every={STEPS}"])


def random(seed, folder, setting):
    """Random search: no prior, no trial stopped."""
    changes = [
        f"search.budget.trials={TRIALS}",
        "search.space.initial_points=[]",
        "search.sampler.name=random",
        "search.scheduler={name: none}",
    ]
    return of_this_project(settings(seed, folder) + changes)


def stock(seed, folder, setting):
    """Ray Tune with its own Optuna searcher and ASHA, around one training in a function."""
    changes = [*settings(seed, folder), *with_prior(seed, setting)]
    # It ranks trials at the rung by all validation images and the weights as they are.
    changes.append(f"trial.eval.every={RUNG}")
    changes += ["trial.eval.rung_images=0", "trial.eval.rung_weights=raw"]
    file = load_config("quickstart", changes)
    space = file.search_space()

    def train(config):
        for report in fine_tune(file.trial_config({**config, "seed": seed})):
            tune.report({METRIC: report.metrics[METRIC], "step": report.step})

    problem = replace(setting.problem, space=space, points=tuple(space.initial_points))
    searcher, scheduler = CONTENDERS[STOCK].create(problem, seed)
    ray.init(num_cpus=2, include_dashboard=False)
    results = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=searcher, scheduler=scheduler, num_samples=TRIALS, max_concurrent_trials=2
        ),
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0),
    ).fit()
    ray.shutdown()
    whole = [result for result in results if (result.metrics or {}).get("step") == STEPS]
    best = max(whole, key=lambda result: result.metrics[METRIC])
    metrics, params = best.metrics or {}, best.config or {}
    steps = sum((result.metrics or {})["step"] for result in results)
    return {"params": params, "value": metrics[METRIC], "steps": steps}


SEARCHES: dict[str, tuple[Callable[[int, Path, Setting], Found], int]] = {
    QUICKSTART: (quickstart, 2 * SEEDS),
    NO_LINE: (without_line, 2 * SEEDS),
    OURS: (ours, SEEDS),
    "Ray's OptunaSearch + ASHA": (stock, SEEDS),
    "random": (random, SEEDS),
}
"""Searches and numbers of their seeds."""


def search_all(found, names, out, setting):
    """Run what has not been run, one contender after the other for each seed."""
    for seed in range(2 * SEEDS):
        for name in names:
            (search, seeds), of_contender = SEARCHES[name], found.setdefault(name, {})
            if seed < seeds and str(seed) not in of_contender:
                of_contender[str(seed)] = search(seed, (out / "runs").absolute(), setting)
                write(found, out)
                print(name, seed, of_contender[str(seed)], flush=True)


def train_again(found, out):
    """Train the best trials of all but the quickstarts with fresh seeds, equal ones once."""
    values: dict[str, list[float]] = {}
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        jobs = []
        for search in (
            s for name, of in found.items() if QUICKSTART not in name for s in of.values()
        ):
            params, key = search["params"], json.dumps(search["params"], sort_keys=True)
            if key not in values:
                values[key] = search.get("fresh", [])
                for seed in FRESH_SEEDS[len(values[key]) :]:
                    file = load_config("quickstart", [f"trial.eval.every={STEPS}"])
                    config = file.trial_config({**params, "seed": seed})
                    jobs.append((key, pool.submit(record, 0, params, config)))
            search["fresh"] = values[key]
        for key, job in jobs:
            values[key].append(job.result()[-1][METRIC])
            write(found, out)


def write(found, out):
    """Write what has been run."""
    (out / "searches.json").write_text(json.dumps(found, indent=1) + "\n")


def summary(found, setting):
    """What each contender's best trials are worth, mean and range over its searches."""
    shown = Table(title=f"{METRIC} of the best trials; the surface's best is {setting.best:.2f}")
    fresh = f"{len(FRESH_SEEDS)} fresh seeds"
    for title in (
        "",
        "searches",
        "whole trials",
        "GPU-s",
        "as searched",
        fresh,
        "- ours",
        "by the surface",
    ):
        shown.add_column(title, justify="right" if title else "left")
    shown.add_column(f"within {CLOSE}", justify="right")
    base = {seed: fmean(of["fresh"]) for seed, of in found.get(OURS, {}).items()}
    for name, searches in found.items():
        surfaces = setting.ends if name == NO_LINE else setting.lines
        points = [unit_point(surfaces.space, s["params"]) for s in searches.values()]
        finals = surfaces.at(np.array(points))[:, -1, 0]
        again = {seed: fmean(of["fresh"]) for seed, of in searches.items() if "fresh" in of}
        paired = [again[seed] - base[seed] for seed in again if seed in base]
        close = sum(setting.best - final <= CLOSE for final in finals)
        shown.add_row(
            name,
            str(len(searches)),
            spread([search["steps"] / STEPS for search in searches.values()], ".1f", fmean),
            spread([s["seconds"] for s in searches.values() if "seconds" in s], ".0f", fmean),
            spread([search["value"] for search in searches.values()], middle=fmean),
            spread(list(again.values()), middle=fmean),
            spread(paired, "+.2f", fmean),
            spread(list(finals), middle=fmean),
            f"{close} of {len(searches)}",
        )
    return shown


def main():
    """Search, train the best trials again, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--searches", nargs="+", choices=SEARCHES, default=list(SEARCHES))
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    setting = recorded_setting()
    resolve_root(load_config("quickstart").trial.data.root, progress=True)
    path = out / "searches.json"
    found: dict[str, dict[str, Found]] = json.loads(path.read_text()) if path.is_file() else {}
    search_all(found, arguments.searches, out, setting)
    train_again(found, out)
    Console(width=150).print(summary(found, setting))


if __name__ == "__main__":
    main()
