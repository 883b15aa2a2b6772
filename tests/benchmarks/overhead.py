"""What does a search cost beside its trainings? `python -m tests.benchmarks.overhead`

| part | what is measured |
|---|---|
| start | from the end of a trial to the first step of the next one, in the workers of a search |
| step | of Lipsum-FT with shared zero-shot features and with its own (`live`), ratio to one of FT |

Model, data and steps are those of the quickstart. Steps of all contenders take turns, so whatever
else the machine does affects them alike.
"""

import argparse
import random
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table

from trainers.config import with_overrides
from trainers.fine_tune import training_batches
from trainers.loop.images import open_images
from trainers.loop.training import start as start_training
from tuning.config.validation import load_config
from tuning.execution.ray_session import ray_session
from tuning.log.callbacks import Callback
from tuning.search import SearchOptions, start_search

SHORT_TRIALS = (
    "trial.steps=8",
    "trial.eval.every=4",
    "search.budget.trials=6",
    "search.references=[]",
    "search.scheduler={name: none}",
    "search.resources.max_concurrent=1",
)
FT = "step of FT"
METHODS = {
    FT: {"method.name": "ft"},
    "step, shared features": {"method.name": "lipsum_ft", "zero_shot_cache_gb": 1},
    "step, live features": {"method.name": "lipsum_ft", "zero_shot_cache_gb": 0},
}


def spread(values):
    """The median of the values and their range, if they differ."""
    least, most = f"{min(values):.2f}", f"{max(values):.2f}"
    return f"{median(values):.2f}" + (f" ({least} to {most})" if least != most else "")


class Stopwatch(Callback):
    """Seconds before the first step of each trial but the first one, which starts the workers."""

    def __init__(self):
        self.before, self._ended = [], None

    def search_started(self, search):
        self._ended = None

    def trial_reported(self, record):
        """The first report says how long the loop took since the first step."""
        if self._ended is not None and len(record.curve) == 1:
            self.before.append(time.time() - record.metrics["cost/seconds"] - self._ended)

    def trial_ended(self, record):
        self._ended = time.time()


def start(folder, rounds):
    watch = Stopwatch()
    with ray_session():
        for number in range(rounds):
            storage = f"search.storage={folder / str(number)}"
            file = load_config("quickstart", [*SHORT_TRIALS, storage])
            start_search(file, SearchOptions(callbacks=[watch], console=Console(quiet=True)))
    yield "start of a trial, s", watch.before


def step(folder, rounds):
    base = load_config("quickstart").trial
    configs = {name: with_overrides(base, of, name) for name, of in METHODS.items()}
    seconds_of_steps({"": configs["step, shared features"]})  # stores the features
    seconds = seconds_of_steps(configs)
    for name, taken in seconds.items():
        ratios = [own / ft for own, ft in zip(taken, seconds[FT], strict=True)]
        yield f"{name}, ratio", [median(ratios)]


def seconds_of_steps(configs):
    """Of each step of each contender; they take the same step one after the other."""
    trainings = {name: start_training(config) for name, config in configs.items()}
    first = next(iter(trainings.values()))
    data = first.setup.config.data
    train = open_images(data, data.id_domain, "train")
    seconds = {name: [] for name in trainings}
    for number, (views, labels) in enumerate(training_batches(first, train)):
        for name in random.Random(number).sample(list(trainings), len(trainings)):
            synchronise()
            began = time.perf_counter()
            trainings[name].step(views, labels)
            synchronise()
            seconds[name].append(time.perf_counter() - began)
    return {name: taken[2:] for name, taken in seconds.items()}  # the first ones allocate memory


def synchronise():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


PARTS = {"start": start, "step": step}


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="of start")
    arguments = parser.parse_args()
    table = Table("", "median and range")
    for name in arguments.parts:
        with TemporaryDirectory(prefix="overhead-", ignore_cleanup_errors=True) as folder:
            for what, found in PARTS[name](Path(folder), arguments.rounds):
                table.add_row(what, spread(found))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
