"""Time of training steps: `python -m tests.benchmarks.steps`

Steps of FT beside those of methods that need the zero-shot model, which computes its features
(`live`) or shares them (`shared`, all of them stored by an earlier pass). All runs take the same
step one after the other, in an order that changes, so whatever else the machine does affects them
alike; a ratio is that of one such round, and the table has the median and the quartiles. The tiny
CLIP has the data, batches and length of the quickstart; ViT-B/32 has random weights, since time
does not depend on them, and few images.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.gpu import CLASSES, synchronise
from trainers.config import TrialConfig
from trainers.embedded_benchmark.build import ImageCounts, build
from trainers.fine_tune import training_batches
from trainers.loop.state import open_images, start
from trainers.loop.step import Stepper

MODELS: dict[str, dict[str, Any]] = {
    "tiny-clip": {
        "model": {"name": "tiny-clip"},
        "data": {"crop_area": [0.4, 1.0], "crop_pct": 0.875},
        "optim": {"lr": 6e-4, "batch_size": 64},
        "eval": {"every": 40, "rung_images": 200, "batch_size": 64},
        "steps": 120,
    },
    "ViT-B-32": {
        "model": {"name": "ViT-B-32", "pretrained": "random"},
        "optim": {"lr": 1e-5, "batch_size": 32},
        "eval": {"every": 4},
        "steps": 12,
    },
}
CONTENDERS = {  # method, GB of shared features
    "ft": ("ft", 1),
    "lipsum_ft, live": ("lipsum_ft", 0),
    "lipsum_ft, shared": ("lipsum_ft", 1),
    "kd, live": ("kd", 0),
    "kd, shared": ("kd", 1),
}


def trial(model, contender, data, steps):
    """The configuration of a contender, in full length or with a number of steps."""
    method, cache_gb = CONTENDERS[contender]
    settings = {**MODELS[model], "method": {"name": method}, "zero_shot_cache_gb": cache_gb}
    if steps is not None:
        settings |= {"steps": steps, "eval": {"every": max(2, steps // 3)}}
    return TrialConfig.model_validate({"data": data, **settings})


def compare(configs):
    """Wall-clock and CPU seconds of each step of each contender."""
    runs = {name: start(config) for name, config in configs.items()}
    first = next(iter(runs.values()))
    train = open_images(first.config.data, first.config.data.id_domain, "train")
    steppers = {name: Stepper(run) for name, run in runs.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for step, (views, labels) in enumerate(training_batches(first, train)):
        for name in random.Random(step).sample(list(runs), len(runs)):
            synchronise()
            wall, cpu = time.perf_counter(), time.process_time()
            steppers[name].step(step, views, labels, lr=1e-6)
            synchronise()
            runs[name].progress.step = step + 1
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: taken[2:] for name, taken in seconds.items()}  # the first ones allocate memory


def main():
    """Draw the images, measure each model, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--steps", type=int, help="of each trial, with about three evaluations")
    arguments = parser.parse_args()
    console = Console(width=170)
    with TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        if "ViT-B-32" in arguments.models:
            build(root, classes=CLASSES, images=ImageCounts(32, 2, 1))
        for model in arguments.models:
            names = arguments.contenders
            data = {"root": str(root)}
            configs = {name: trial(model, name, data, arguments.steps) for name in names}
            for name, config in configs.items():
                if name.endswith("shared"):
                    compare({name: config})  # stores the features
            console.print(ratios(model, compare(configs)))


def ratios(model, seconds):
    """Seconds of a step, and their ratio to FT: median and quartiles."""
    title = f"{model}: seconds of a step, {torch.get_num_threads()} threads"
    shown = Table("", "wall", "/ ft", "CPU", "/ ft", title=title)
    for name, taken in seconds.items():
        cells = []
        for clock in (0, 1):
            own = [pair[clock] for pair in taken]
            to_ft = [a / b[clock] for a, b in zip(own, seconds["ft"], strict=True)]
            low, middle, high = quantiles(to_ft, n=4)
            cells += [f"{median(own):.3g}", f"{middle:.3f} [{low:.3f}, {high:.3f}]"]
        shown.add_row(name, *cells)
    return shown


if __name__ == "__main__":
    main()
