"""What do means of weights gain that cost no training? `python -m tests.benchmarks.soups RUN ...`

For each run of a search, two means of weights are compared with what they are made of:

- the greedy soup of the best trials whose weights were kept, as `export --soup greedy --top 8`
  makes it, with the best trial;
- the mean of the best trial's settings, trained with three fresh seeds, with the three trainings.
  Seeds are those of `confirm`. The weights at the ends of the trainings are averaged, and the mean
  chooses a point of its line to the zero-shot weights as a trial does.

Everything is trained and chosen on validation data first, for all runs. Then the test splits are
read for what was chosen; a training that `confirm` has done before has the result of `confirm`.
Trainings and results are kept in the folder `--out`, so the command may be interrupted. It is for
searches of FT and Lipsum-FT, in which the same tensors train.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

import torch

from trainers.data.data_root import resolve_root
from trainers.fine_tune import fine_tune
from trainers.loop.evaluate_run import evaluate_run, holding, measure
from trainers.loop.state import load_split, start
from trainers.models.averaging import interpolate
from trainers.weights.soups import average
from tuning import load_run
from tuning.checkpoints.files import kept_checkpoint
from tuning.confirmation.confirm import fresh_seeds
from tuning.runs.confirmation import SPLIT, estimate, read_confirmation
from tuning.runs.ranking import best_trial
from tuning.weights.soup import soup_of

SEEDS, TOP, PROCESSES = 3, 8, 2
MODELS = ("best trial", "greedy soup", "single seeds", "mean of seeds")
BEST, GREEDY, SINGLE, MEAN = MODELS
DIFFERENCES = ((GREEDY, BEST), (MEAN, SINGLE), (MEAN, BEST))


def accuracies(metrics, split):
    """Accuracies on the ID and on the OOD domains of a split, and their mean, in percent."""
    keys = {"mean": f"{split}/mean_acc", "ID": f"id_{split}/acc", "OOD": f"ood_{split}/mean_acc"}
    return {name: metrics[key] for name, key in keys.items()}


def mean_over(found):
    return {name: fmean(one[name] for one in found) for name in found[0]}


def train(config, path):
    """Store the weights at the end of a training, and its report."""
    *_, last = fine_tune(config)
    unfinished = path.with_suffix(".part")
    torch.save({"weights": last.run.weights, "metrics": last.metrics}, unfinished)
    unfinished.rename(path)


class Study:
    """The means of one run; trainings are stored in `folder`."""

    def __init__(self, run_folder, folder):
        self.run = load_run(run_folder)
        self.best = best_trial(self.run.search, self.run.history.records)
        self.config = self.run.file.trial_config(self.best.params)
        seeds = fresh_seeds(self.run.file.trial.seed, self.run.history.records, SEEDS)
        self.path = folder / f"{self.run.search.run_id}.json"
        confirmed = read_confirmation(self.run.search)
        results = confirmed.results if confirmed else {}
        keys = {seed: (self.best.trial_id, seed) for seed in seeds}
        self.known = {seed: results[key].metrics for seed, key in keys.items() if key in results}
        self.paths = {seed: folder / f"{self.run.search.run_id}-seed-{seed}.pt" for seed in seeds}

    def missing(self):
        """What is left to train, as arguments of `train`."""
        for seed, path in self.paths.items():
            if not path.is_file():
                changes = {"seed": seed, **({"eval.line": "off"} if seed in self.known else {})}
                yield self.run.file.trial_config({**self.best.params, **changes}), path

    def stored(self):
        return json.loads(self.path.read_text())

    def store(self, **found):
        stored = self.stored() if self.path.is_file() else {}
        self.path.write_text(json.dumps({**stored, **found}, indent=1) + "\n")

    @cached_property
    def reports(self):
        """The last report of each training; that of `confirm` has test accuracies."""
        return {
            seed: self.known.get(seed) or torch.load(path)["metrics"]
            for seed, path in self.paths.items()
        }

    @cached_property
    def mean(self):
        """The mean of the weights at the ends of the trainings."""
        ends = [torch.load(path)["weights"] for path in self.paths.values()]
        return {name: torch.stack([end[name] for end in ends]).mean(0) for name in ends[0]}

    def choose(self):
        """Store the trials of the soup and the point of the mean, by validation data."""
        if self.path.is_file():
            return
        soup, state = soup_of(self.run, TOP), start(self.config)
        with torch.no_grad():
            for name, value in self.mean.items():
                state.student.trained[name].copy_(value)
        state.progress.step = self.config.steps  # only the end of a training has a line
        images = load_split(self.config, "val")
        sample = {d: of.sampled(self.config.eval.line_images) for d, of in images.items()}
        mean = evaluate_run(state, "val", images, line_sample=sample)
        val = {
            BEST: accuracies(self.best.metrics, "val"),
            GREEDY: accuracies(soup.metrics, "val"),
            SINGLE: mean_over([accuracies(one, "val") for one in self.reports.values()]),
            MEAN: accuracies(mean, "val"),
        }
        self.store(trials=soup.origin["trials"], a=mean["line/a"], val=val)

    def read_test(self):
        """Store the accuracies on the test splits of what was chosen."""
        found = self.stored()
        if "test" in found:
            return
        resolve_root(self.config.data.root, [(d, SPLIT) for d in self.config.data.domains])
        state, images = start(self.config), load_split(self.config, SPLIT)

        def measured(weights):
            with holding(state, {name: weights[name] for name in state.student.trained}):
                return accuracies(measure(state, SPLIT, images), SPLIT)

        def soup(trials):
            kept = [kept_checkpoint(self.run.checkpoints, trial) for trial in trials]
            return measured(average([checkpoint.local_path() for checkpoint in kept]))

        def at_point(end, a):
            return measured(interpolate(state.initial, end, a))

        single = [
            accuracies(report, SPLIT)
            if seed in self.known
            else at_point(torch.load(self.paths[seed])["weights"], report["line/a"])
            for seed, report in self.reports.items()
        ]
        best, trials = soup([self.best.trial_id]), found["trials"]
        test = {
            BEST: best,
            GREEDY: soup(trials) if len(trials) > 1 else best,
            SINGLE: mean_over(single),
            MEAN: at_point(self.mean, found["a"]),
        }
        self.store(test=test)


def show(studies):
    """Print accuracies of each run, then differences over the runs on the same data."""
    print("| mean of ID and OOD accuracy, val / test |", *(f"{one} |" for one in MODELS))
    tests = {}
    for study in studies:
        of, domain = study.stored(), study.config.data.id_domain
        tests.setdefault(domain, []).append(of["test"])
        val, test = ({one: of[split][one]["mean"] for one in MODELS} for split in ("val", "test"))
        run = f"| {domain}, {study.run.search.name}, soup of {len(of['trials'])}, a = {of['a']:g} |"
        print(run, *(f"{val[one]:.2f} / {test[one]:.2f} |" for one in MODELS))
    for domain, found in tests.items():
        for one, other in DIFFERENCES:
            print(f"| {domain}, {len(found)} runs: {one} - {other}", end=" |")
            for name in found[0][one]:
                gain = estimate([of_run[one][name] - of_run[other][name] for of_run in found])
                print(f" {name} {gain.mean:+.2f} [{gain.low:.2f}, {gain.high:.2f}]", end=" |")
            print()


def main():
    """Do what has not been done, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a search")
    parser.add_argument("--out", type=Path, required=True, help="for trainings and results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    studies = [Study(folder, arguments.out) for folder in arguments.runs]
    with ProcessPoolExecutor(PROCESSES, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for job in [pool.submit(train, *one) for study in studies for one in study.missing()]:
            job.result()
        for step in (Study.choose, Study.read_test):
            for job in [pool.submit(step, study) for study in studies]:
                job.result()
    show(studies)


if __name__ == "__main__":
    main()
