"""What does a user take home? `python -m tests.benchmarks.photographs.models --pacs P --out O`

Each domain of PACS in turn is the ID domain, the three others are OOD. For each, two searches of 20
trials of Lipsum-FT, confirmed by three fresh seeds of winner, first trial and plain fine-tuning
(FT), build a model. Their competitor has as many trainings: 30 of plain fine-tuning that differ in
their seeds, of which the best one, the greedy soup and the mean are built by the functions that
`confirm` uses, and the best of these by validation is taken.

About 340 trainings, 5 to 7.5 CPU-hours; the first search of all domains comes first. Accuracies are
stored in `O/models.json` after each search and training, and the same command goes on from there.
Settings, ranges and the learning rate are those of `tests.benchmarks.photographs`.
"""

import argparse
import json
import math
import shutil
from pathlib import Path
from statistics import fmean, stdev

from tests.benchmarks.photographs.__main__ import (
    build_clip,
    configuration,
    inputs,
    prepare_images,
    settings,
)
from trainers.data.store import open_store
from trainers.data.suite import load_suite
from trainers.evaluation.metrics import MEAN_ACC
from trainers.fine_tune import fine_tune
from trainers.loop.evaluate_run import evaluate_run, measure_end
from trainers.loop.state import load_split
from trainers.weights.means import (
    Recipe,
    add_ends,
    evaluation_config,
    greedy_soup,
    make_and_test,
    mean_of_ends,
)
from tuning import confirm, load_run
from tuning.runs.confirmation import END, FT, SPLIT, estimate
from tuning.runs.model import models_tested
from tuning.runs.ranking import best_trial, first_trial
from tuning.runs.resume import earlier_run
from tuning.search import search_or_resume
from tuning.views.checkpoints import kept_checkpoint

SEARCHES = (0, 10)
"""Seeds of trials and samplers; the fresh seeds of a search are 1000 higher."""
TRIALS, FRESH_SEEDS = 20, 3
COMPETITORS = 30
ZERO = "zero-shot"
ONE_END = "one plain fine-tuning, at its end"
ONE = "one plain fine-tuning, on its line"
AUTHORS = "Lipsum-FT, authors' settings"
SETTINGS = "settings of the search"
TRIAL = "best trial's weights"
MODEL = "the model"
OTHER = "best of 30 plain fine-tunings, their soup and their mean"
ROWS = (ZERO, ONE_END, ONE, AUTHORS, SETTINGS, TRIAL, MODEL, OTHER)
BOTH = {"id": 0.5, "ood": 0.5}
PARTS = ({"id": 1.0}, {"ood": 1.0}, BOTH)
"""What is averaged: accuracies with their weights."""


def accuracies(metrics, prefix=""):
    """ID and mean OOD test accuracy in percent."""
    return {
        "id": metrics[f"{prefix}id_{SPLIT}/acc"],
        "ood": metrics[f"{prefix}ood_{SPLIT}/mean_acc"],
    }


class Results:
    """Test accuracies by ID domain, search or None, row and seed or None, in a file."""

    def __init__(self, path):
        self.path = path
        self.rows = json.loads(path.read_text()) if path.is_file() else []

    def has(self, domain, search, row):
        return any((r["domain"], r["search"], r["row"]) == (domain, search, row) for r in self.rows)

    def of(self, row):
        return [one for one in self.rows if one["row"] == row]

    def add(self, *rows):
        self.rows += rows
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(self.rows, indent=1) + "\n")
        unfinished.replace(self.path)


def search(domain, seed, given, out, results):
    """Run, confirm and store one search: its settings, its best trial's weights, its model."""
    if results.has(domain, seed, MODEL):
        return
    storage = out.absolute() / "runs"
    own = {"search.name": f"{domain}-{seed}", "search.storage": storage}
    own |= {"trial.seed": seed, "search.sampler.seed": seed, "search.budget.trials": TRIALS}
    file = configuration({**given, **own})
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
            rows += plain_rows(fresh, record.metrics)
    kept = kept_checkpoint(run.checkpoints, best.trial_id)
    recipe = Recipe(
        evaluation_config(file.trial_config(best.params), trains_text=False), (kept.root,)
    )
    tested, _ = make_and_test(recipe, str(out / "best-trial"), best.metrics, SPLIT)
    rows.append({"row": TRIAL, "seed": best.params.get("seed", seed), **accuracies(tested)})
    model = models_tested(folder)[-1]
    rows.append({"row": MODEL, "seed": None, "made_of": model.made_of(), **accuracies(model.test)})
    results.add(*({"domain": domain, "search": seed, **row} for row in rows))


def plain_rows(seed, metrics):
    """One plain fine-tuning on its line and at its end."""
    at_end = "" if metrics["line/a"] == 1 else END
    return [
        {"row": ONE, "seed": seed, **accuracies(metrics)},
        {"row": ONE_END, "seed": seed, **accuracies(metrics, at_end)},
    ]


def competitor(domain, given, out, results):
    """Train plain fine-tunings, and store the best by validation of one, soup and mean."""
    if results.has(domain, None, OTHER):
        return
    folder = out.absolute() / "plain" / domain
    file = configuration(given)
    fresh = [1000 + seed + n for seed in SEARCHES for n in range(FRESH_SEEDS)]
    seeds = [*fresh, *range(2000, 2000 + COMPETITORS - len(fresh))]
    for seed in seeds:
        if (folder / f"{seed}" / "metrics.json").is_file():
            continue
        shutil.rmtree(folder / f"{seed}", ignore_errors=True)
        config = file.trial_config({"method.name": FT, "seed": seed})
        *_, last = fine_tune(config)
        images = load_split(config, SPLIT)
        last.save(folder / f"{seed}")
        last.save_end(open_store(folder / f"{seed}" / "end"))
        last.add(evaluate_run(last.run, SPLIT, images))
        if last.metrics["line/a"] != 1:
            last.add(measure_end(last.run, SPLIT, images))
        (folder / f"{seed}" / "metrics.json").write_text(json.dumps(last.metrics))

    def merit(metrics):
        return metrics[MEAN_ACC]

    metrics = {s: json.loads((folder / f"{s}" / "metrics.json").read_text()) for s in seeds}
    best, *others = sorted(seeds, key=lambda s: -merit(metrics[s]))
    config = evaluation_config(file.trial_config({"method.name": FT}), trains_text=False)
    points = [str(folder / f"{seed}") for seed in (best, *others)]
    soup = greedy_soup(config, points, metrics[best], merit)
    total = str(folder / "sum")
    add_ends(total, [(seed, str(folder / f"{seed}" / "end")) for seed in seeds])
    mean = mean_of_ends(config, total, merit)
    found = {
        "one": (metrics[best], Recipe(config, (points[0],))),
        "soup": (soup.metrics, Recipe(config, tuple(points[i] for i in soup.used), len(soup.used))),
        "mean": (mean.metrics, Recipe(config, (total,), len(seeds), mean.point)),
    }
    rows = []
    for made_of, (of_val, recipe) in found.items():
        tested, _ = make_and_test(recipe, str(folder / made_of), of_val, SPLIT)
        row = {"made_of": made_of, "seed": None, "val": merit(of_val), **accuracies(tested)}
        rows.append({"row": f"plain fine-tuning, {made_of}", **row})
    chosen = max(rows, key=lambda row: row["val"])
    rows.append({**chosen, "row": OTHER})
    for seed in seeds:
        if seed not in fresh:  # the searches have stored these
            rows += plain_rows(seed, metrics[seed])
    results.add(*({"domain": domain, "search": None, **row} for row in rows))
    shutil.rmtree(folder)


def table(results):
    """Means over ID domains.

    The interval of a difference counts ID domains, each of which is one draw.
    """
    head = ("test accuracy, %", "ID", "OOD", "mean of both", f"less {ONE}")
    head += ("deviation between seeds, OOD", "worst seed, OOD")
    lines = [head, ["---"] * len(head)]
    for row in ROWS:
        rows = results.of(row)
        if not rows:
            continue
        means = [fmean(by_domain(rows, part).values()) for part in PARTS]
        own, its = (by_domain(of, BOTH) for of in (rows, results.of(ONE)))
        gaps = [own[domain] - its[domain] for domain in own if domain in its]
        groups = [values for values in seeds_of(rows) if len(values) > 1]
        freedom = sum(len(values) - 1 for values in groups)
        squares = sum(stdev(values) ** 2 * (len(values) - 1) for values in groups)
        lines.append(
            [
                row,
                *(f"{mean:.1f}" for mean in means),
                difference(gaps) if row != ONE else "",
                f"{(squares / freedom) ** 0.5:.1f}" if freedom else "",
                f"{min(map(min, groups)):.1f}" if groups else "",
            ]
        )
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def by_domain(rows, weights):
    """The mean of a weighted accuracy over all rows of an ID domain."""
    of_domains = {}
    for one in rows:
        value = sum(one[part] * weight for part, weight in weights.items())
        of_domains.setdefault(one["domain"], []).append(value)
    return {domain: fmean(values) for domain, values in of_domains.items()}


def difference(gaps):
    """Mean ± half of the 95 % interval; empty without a domain."""
    if not gaps:
        return ""
    found = estimate(gaps)
    half = found.high - found.mean
    return f"{found.mean:+.1f}" if math.isnan(half) else f"{found.mean:+.1f} ± {half:.1f}"


def seeds_of(rows):
    """OOD accuracies of what was trained with several seeds, by ID domain and search."""
    groups = {}
    for one in rows:
        if one["seed"] is not None:
            groups.setdefault((one["domain"], one["search"]), []).append(one["ood"])
    return list(groups.values())


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="for everything that is made")
    parser.add_argument("--pacs", type=Path, required=True, help="folder <domain>/<class>/*")
    parser.add_argument("--domains", nargs="+", help="ID domains; by default all four")
    arguments = parser.parse_args(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    suite, results = load_suite("pacs"), Results(arguments.out / "models.json")
    everything = (suite.id_domain, *suite.ood_domains)
    domains = arguments.domains or everything
    build_clip(arguments.out)
    given = {}
    for domain in domains:
        others = tuple(one for one in everything if one != domain)
        own = suite.model_copy(update={"id_domain": domain, "ood_domains": others})
        prepare_images(arguments.pacs, arguments.out / domain, own)
        root = (arguments.out / domain / "data").absolute()
        data = {"trial.data.root": root, "trial.data.id_domain": domain}
        given[domain] = settings({**inputs(arguments.out), **data})
    for seed in SEARCHES:
        for domain in domains:
            search(domain, seed, given[domain], arguments.out, results)
            print(table(results), flush=True)
    for domain in domains:
        competitor(domain, given[domain], arguments.out, results)
        print(table(results), flush=True)


if __name__ == "__main__":
    main()
