"""What a user takes home: the model that a search ends with, beside as many plain fine-tunings.

For each ID domain, searches of 20 trials of Lipsum-FT, confirmed by three fresh seeds of winner,
first trial and plain fine-tuning (FT), build a model. Their competitor has as many trainings: 30 of
plain fine-tuning that differ in their seeds. Of these, the best one or the greedy soup, which the
function of `confirm` builds, is taken by validation.
"""

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from tests.benchmarks.models.table import (
    AUTHORS,
    MODEL,
    ONE,
    ONE_END,
    OTHER,
    ROWS,
    SETTINGS,
    TRIAL,
    ZERO,
    table,
)
from trainers.evaluation.metrics import MEAN_ACC
from trainers.fine_tune import fine_tune
from trainers.weights.means import (
    Recipe,
    evaluation_config,
    greedy_soup,
    make_and_test,
)
from tuning import confirm, load_run
from tuning.runs.confirmation import END, FT, SPLIT
from tuning.runs.model import models_tested
from tuning.runs.ranking import best_trial, first_trial
from tuning.runs.resume import earlier_run
from tuning.search import search_or_resume
from tuning.views.checkpoints import kept_checkpoint

TRIALS, FRESH_SEEDS = 20, 3
FIRST_FRESH = 1000
"""By how much the first fresh seed of a search is higher than the seed of its trials."""
COMPETITORS = 30
COMPETITOR_SEED = 2000


def study(configure, seeds, out):
    """Run all searches and competitors, and print the table after each.

    What was done is in `out/models.json` and is not done again; what was interrupted goes on. The
    first search of all ID domains comes first, then their competitors, then the other searches.

    Args:
        configure: for each ID domain, makes the configuration from the values of dotted keys.
        seeds: of trials and samplers, one for each search of an ID domain.
    """
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out / "models.json")
    fresh = [seed + FIRST_FRESH + n for seed in seeds for n in range(FRESH_SEEDS)]
    first, *others = seeds
    for seed in (first, None, *others):
        for domain, of_domain in configure.items():
            if seed is None:
                competitor(domain, of_domain, fresh, out, results)
            else:
                search(domain, seed, of_domain, out, results)
            print(table(results.rows, ROWS), flush=True)


class Results:
    """Test accuracies by ID domain, search or None, row and seed or None, in a file."""

    def __init__(self, path):
        self.path = path
        self.rows = json.loads(path.read_text()) if path.is_file() else []

    def has(self, domain, search, row):
        return any((r["domain"], r["search"], r["row"]) == (domain, search, row) for r in self.rows)

    def add(self, domain, search, rows):
        self.rows += [{"domain": domain, "search": search, **row} for row in rows]
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(self.rows, indent=1) + "\n")
        unfinished.replace(self.path)


def search(domain, seed, configure, out, results):
    """Run, confirm and store one search: its settings, its best trial's weights, its model."""
    if results.has(domain, seed, MODEL):
        return
    storage = out.absolute() / "runs"
    own = {"search.name": f"{domain}-{seed}", "search.storage": storage}
    own |= {"trial.seed": seed, "search.sampler.seed": seed, "search.budget.trials": TRIALS}
    file = configure(own)
    folder = earlier_run(file, storage)
    if folder is None or load_run(folder).history.outcome != "finished":
        result = search_or_resume(file)
        folder = result.folder
        if result.outcome == "stopped":
            raise SystemExit(f"{folder}: stopped; the same command goes on")
    found = confirm(folder, seeds=FRESH_SEEDS, rules=["objective", "first"])
    run = load_run(folder)
    best = best_trial(run.search, run.history.records)
    first = first_trial(run.history.records)
    rows = [{"row": ZERO, "seed": None, **accuracies(found.zero_shot)}]
    for row, trial_id in ((AUTHORS, first.trial_id), (SETTINGS, best.trial_id)):
        of_seeds = [(s, r) for (name, s), r in found.results.items() if name == trial_id]
        rows += [{"row": row, "seed": s, **accuracies(record.metrics)} for s, record in of_seeds]
    for (name, fresh), record in found.results.items():
        if name == FT:
            rows.append({"row": ONE, "seed": fresh, **accuracies(record.metrics)})
            at_end = "" if record.metrics["line/a"] == 1 else END
            rows.append({"row": ONE_END, "seed": fresh, **accuracies(record.metrics, at_end)})
    kept = kept_checkpoint(run.checkpoints, best.trial_id)
    config = evaluation_config(file.trial_config(best.params), trains_text=False)
    recipe = Recipe(config, ((kept.root, 1.0),))
    tested, _ = make_and_test(recipe, str(out / "best-trial"), best.metrics, SPLIT)
    rows.append({"row": TRIAL, "seed": best.params.get("seed", seed), **accuracies(tested)})
    model = models_tested(folder)[-1]
    rows.append({"row": MODEL, "seed": None, "made_of": model.made_of(), **accuracies(model.test)})
    results.add(domain, seed, rows)


def accuracies(metrics, prefix=""):
    """ID and mean OOD test accuracy in percent."""
    return {
        "id": metrics[f"{prefix}id_{SPLIT}/acc"],
        "ood": metrics[f"{prefix}ood_{SPLIT}/mean_acc"],
    }


def plain(config, folder):
    """Train and store one plain fine-tuning, in a process of its own; its validation metrics.

    What was done is not done again.
    """
    stored = folder / "metrics.json"
    if not stored.is_file():
        torch.set_num_threads(1)
        shutil.rmtree(folder, ignore_errors=True)
        *_, last = fine_tune(config)
        last.save(folder)
        stored.write_text(json.dumps(last.metrics))
    return json.loads(stored.read_text())


def competitor(domain, configure, fresh, out, results):
    """Train plain fine-tunings, and store the best by validation of one and soup.

    Args:
        fresh: seeds of the plain fine-tunings of `confirm`, which are among them.
    """
    if results.has(domain, None, OTHER):
        return
    folder = out.absolute() / "plain" / domain
    file = configure({})
    more = COMPETITORS - len(fresh)
    seeds = [*fresh, *range(COMPETITOR_SEED, COMPETITOR_SEED + more)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        configs = [file.trial_config({"method.name": FT, "seed": seed}) for seed in seeds]
        folders = [folder / f"{seed}" for seed in seeds]
        metrics = dict(zip(seeds, pool.map(plain, configs, folders), strict=True))

    def merit(metrics):
        return metrics[MEAN_ACC]

    best, *others = sorted(seeds, key=lambda s: -merit(metrics[s]))
    config = evaluation_config(file.trial_config({"method.name": FT}), trains_text=False)
    points = [str(folder / f"{seed}") for seed in (best, *others)]
    soup = greedy_soup(config, points, metrics[best], merit)
    each = 1 / len(soup.used)
    found = {
        "one": (metrics[best], Recipe(config, ((points[0], 1.0),))),
        "soup": (soup.metrics, Recipe(config, tuple((points[i], each) for i in soup.used))),
    }
    rows = []
    for made_of, (of_val, recipe) in found.items():
        tested, _ = make_and_test(recipe, str(folder / made_of), of_val, SPLIT)
        row = {"made_of": made_of, "seed": None, "val": merit(of_val), **accuracies(tested)}
        rows.append({"row": f"plain fine-tuning, {made_of}", **row})
    chosen = max(rows, key=lambda row: row["val"])
    results.add(domain, None, [*rows, {**chosen, "row": OTHER}])
    shutil.rmtree(folder)
