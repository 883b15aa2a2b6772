"""Do images without labels tell which trial is most accurate on them?

    python -m tests.benchmarks.unlabelled FOLDER

Trains points of the quickstart's space at full length, as `record_curves` does, and compares
estimates of each training's accuracy on an OOD domain with the accuracy itself, by their rank
correlation over the trainings (Spearman; 95 % bootstrap over trainings). None of the estimates
reads a label of the domain:

- `zero-shot`: share of the images for which the training and the zero-shot model agree;
- `others`: the same with each other training, on average (Baek et al., NeurIPS 2022, rest on it);
- `majority`: the same with the vote of all trainings;
- `confidence`: mean probability of the predicted class.

`ID accuracy`, which needs no image of the domain, stands beside them. Validation splits only. What
the folder holds is not trained again.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

from tests.benchmarks.record_curves import sobol
from trainers.data.data_root import resolve_root
from trainers.embedded_benchmark.build import available_cores
from trainers.fine_tune import fine_tune
from tuning.config.validation import load_config

RESAMPLES = 2_000


def train(config, file):
    """Write the predictions of a training for its validation images; in a process of its own."""
    torch.set_num_threads(1)
    *_, last = fine_tune(config)
    file.write_bytes(last.run.predictions)


def estimates(predicted, zero_shot):
    """Agreements of each training, (trainings,).

    Args:
        predicted: classes, (trainings, images).
        zero_shot: classes of the zero-shot model, (images,).
    """
    count = len(predicted)
    pairs = np.array([(predicted == one).mean(axis=1) for one in predicted])
    votes = np.array([np.bincount(column).argmax() for column in predicted.T])
    return {
        "zero-shot": (predicted == zero_shot).mean(axis=1),
        "others": (pairs.sum(axis=1) - 1) / (count - 1),
        "majority": (predicted == votes).mean(axis=1),
    }


def rank_correlation(first, second):
    """Spearman's coefficient of two columns and its interval."""

    def of(rows):
        return float(np.corrcoef(rankdata(first[rows]), rankdata(second[rows]))[0, 1])

    count = len(first)
    draws = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    low, high = np.percentile([of(draw) for draw in draws], [2.5, 97.5])
    return f"{of(np.arange(count)):.2f} [{low:.2f}, {high:.2f}]"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trainings", type=int, default=32)
    parser.add_argument("--line", default="auto", help="trial.eval.line")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    file = load_config("quickstart", [f"trial.eval.line={arguments.line}", "trial.eval.every=120"])
    resolve_root(file.trial.data.root, progress=True)
    paths = [folder / f"{number}.parquet" for number in range(arguments.trainings)]
    with ProcessPoolExecutor(available_cores(), get_context("spawn")) as pool:
        jobs = [
            pool.submit(train, file.trial_config({**point, "seed": number}), path)
            for number, (point, path) in enumerate(zip(sobol(file, len(paths)), paths, strict=True))
            if not path.is_file()
        ]
        for done, job in enumerate(jobs, 1):
            job.result()
            print(f"{done} of {len(jobs)}", flush=True)

    rows = pd.concat(pd.read_parquet(path).assign(training=n) for n, path in enumerate(paths))
    rows["correct"] = rows.predicted == rows.label
    accuracies = rows.groupby(["domain", "training"], observed=True)["correct"].mean().unstack(0)
    shown = Table(title=f"Rank correlation with accuracy, {len(paths)} trainings")
    id_domain = file.trial.data.id_domain
    names = ("zero-shot", "others", "majority", "confidence", "ID accuracy")
    for title in ("domain", "accuracy", *names):
        shown.add_column(title, justify="left" if title == "domain" else "right")
    for domain in file.trial.data.ood_domains:
        of = rows[rows.domain == domain]
        table = of.pivot(index="training", columns="image", values="predicted").to_numpy()
        first = of[of.training == 0].set_index("image").sort_index()
        found = estimates(table, first.zero_shot.to_numpy())
        found["confidence"] = of.groupby("training").confidence.mean().to_numpy()
        found["ID accuracy"] = accuracies[id_domain].to_numpy()
        truth = accuracies[domain].to_numpy()
        cells = [rank_correlation(found[name], truth) for name in names]
        shown.add_row(domain, f"{100 * truth.min():.1f} to {100 * truth.max():.1f}", *cells)
    Console(width=150).print(shown)


if __name__ == "__main__":
    main()
