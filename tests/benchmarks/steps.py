"""Time of training steps: `python -m tests.benchmarks.steps`

Steps of FT beside those of Lipsum-FT, whose zero-shot model computes its features (`live`) or
shares them (`shared`, all of them stored by an earlier pass). All runs take the same step one after
the other, in an order that changes, so whatever else the machine does affects them alike; a ratio
is that of one such round, and the table has the median and the quartiles. Model, data, batches and
length are those of the quickstart.
"""

import random
import time
from statistics import median, quantiles

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.gpu import synchronise
from trainers.config import with_overrides
from trainers.fine_tune import training_batches
from trainers.loop.state import open_images, start
from trainers.loop.step import Stepper
from tuning.config.validation import load_config

CONTENDERS = {
    "ft": {"method.name": "ft"},
    "lipsum_ft, live": {"method.name": "lipsum_ft", "zero_shot_cache_gb": 0},
    "lipsum_ft, shared": {"method.name": "lipsum_ft", "zero_shot_cache_gb": 1},
}


def compare(configs):
    """Wall-clock and CPU seconds of each step of each contender."""
    runs = {name: start(config) for name, config in configs.items()}
    first = next(iter(runs.values()))
    train = open_images(first.config.data, first.config.data.id_domain, "train")
    steppers = {name: Stepper(run) for name, run in runs.items()}
    seconds = {name: [] for name in runs}
    for step, (views, labels) in enumerate(training_batches(first, train)):
        for name in random.Random(step).sample(list(runs), len(runs)):
            synchronise()
            wall, cpu = time.perf_counter(), time.process_time()
            steppers[name].step(step, views, labels, lr=1e-6)
            synchronise()
            runs[name].progress.step = step + 1
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: taken[2:] for name, taken in seconds.items()}  # the first ones allocate memory


def ratios(seconds):
    """Seconds of a step, and their ratio to FT: median and quartiles."""
    title = f"Seconds of a step, {torch.get_num_threads()} threads"
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
    base = load_config("quickstart").trial
    trials = {name: with_overrides(base, of, name) for name, of in CONTENDERS.items()}
    compare({"shared": trials["lipsum_ft, shared"]})  # stores the features
    Console(width=120).print(ratios(compare(trials)))
