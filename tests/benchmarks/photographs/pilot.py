"""Which size of a trial? `python -m tests.benchmarks.photographs --pacs PACS --out OUT --pilot`

Trains untuned FT with two seeds at three sizes of images, and prints validation accuracies at the
end and on the line, and CPU seconds. No test split is read. The last column is the half-width that
a difference in mean OOD accuracy can expect: ``sqrt(t^2 S + z^2 I)``. With the difference d of the
two seeds, S = d^2 / 15 for 15 pairs of trainings with nothing in common. I is the variance by the
choice of the test images: a difference of two models is -1, 0 or 1, and not 0 on the share of
images on which the two seeds disagree; both terms are too large, as trainings are paired by seed,
and as means over seeds disagree on fewer images.
"""

import io
import json
import math

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from scipy import stats

from trainers.config import with_overrides
from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC
from trainers.fine_tune import fine_tune

PIXELS = (64, 96, 128)
SEEDS = (0, 1)
PAIRS = 15
TEST_TO_VAL = 2
"""Test images for each validation image."""


def train(config):
    *_, last = fine_tune(config)
    shown = pd.read_parquet(io.BytesIO(last.run.predictions))
    right = {
        str(domain): (rows["predicted"] == rows["label"]).astype(int).tolist()
        for domain, rows in shown.groupby("domain", observed=True)
    }
    return {"metrics": last.metrics, "right": right}


def run(path, trials):
    """Train what is not in the file yet, and print the table."""
    torch.set_num_threads(1)
    done = json.loads(path.read_text()) if path.is_file() else {}
    for pixels, trial in trials.items():
        for seed in SEEDS:
            name = f"{pixels}, seed {seed}"
            if name not in done:
                changes = {"seed": seed, "method.name": "ft"}
                done[name] = train(with_overrides(trial, changes, "pilot"))
                path.write_text(json.dumps(done))
                print(name, done[name]["metrics"]["cost/cpu_seconds"], flush=True)
    Console(width=110).print(table(done))


def table(done):
    shown = Table("pixels", "ID", "OOD", "ID, end", "OOD, end", "a", "CPU, s", "± OOD")
    for pixels in PIXELS:
        first, second = (done[f"{pixels}, seed {seed}"] for seed in SEEDS)
        both = first["metrics"], second["metrics"]
        keys = (ID_ACC, OOD_MEAN_ACC, f"line/1/{ID_ACC}", f"line/1/{OOD_MEAN_ACC}", "line/a")
        cells = [" / ".join(f"{of[key]:.4g}" for of in both) for key in keys]
        seconds = " / ".join(f"{of['cost/cpu_seconds']:.0f}" for of in both)
        half = half_width(first, second)
        shown.add_row(str(pixels), *cells, seconds, f"{half:.1f}")
    return shown


def half_width(first, second):
    """Of a difference in mean OOD accuracy over `PAIRS` pairs, in points."""
    seeds = (first["metrics"][OOD_MEAN_ACC] - second["metrics"][OOD_MEAN_ACC]) ** 2 / PAIRS
    domains = [name for name in first["right"] if f"ood_val/{name}/acc" in first["metrics"]]
    images = 0.0
    for name in domains:
        pairs = list(zip(first["right"][name], second["right"][name], strict=True))
        disagree = sum(a != b for a, b in pairs) / len(pairs)
        images += (100 / len(domains)) ** 2 * disagree / (TEST_TO_VAL * len(pairs))
    return math.hypot(stats.t.ppf(0.975, PAIRS - 1) * seeds**0.5, 1.96 * images**0.5)
