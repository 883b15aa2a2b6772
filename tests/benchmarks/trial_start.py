"""What does it cost to start a trial? `python -m tests.benchmarks.trial_start`

Trials of the embedded tiny CLIP, in turn, in the workers of a search. Shown is the time from the
end of the trial before it to its first step.
"""

import argparse
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tests.benchmarks.spread import spread
from tuning.config.validation import load_config
from tuning.execution.ray_session import ray_session
from tuning.runs.callbacks import Callback
from tuning.search import SearchOptions, start_search

TRIALS = 6
SETTINGS = (
    "trial.steps=8",
    "trial.eval.every=4",
    f"search.budget.trials={TRIALS}",
    "search.references=[]",
    "search.scheduler={name: none}",
    "search.resources.max_concurrent=1",
)


class Stopwatch(Callback):
    """Seconds before the first step of each trial but the first one."""

    def __init__(self):
        self.before, self._ended = [], None

    def search_started(self, search):
        """The first trial of each search starts the workers and is not measured."""
        self._ended = None

    def trial_reported(self, record):
        """The first report says how long the loop took since the first step."""
        if self._ended is not None and len(record.curve) == 1:
            self.before.append(time.time() - record.metrics["cost/seconds"] - self._ended)

    def trial_ended(self, record):
        self._ended = time.time()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    watch = Stopwatch()
    with ray_session(), tempfile.TemporaryDirectory(prefix="trial-start-") as folder:
        for number in range(rounds):
            storage = Path(folder) / str(number)
            file = load_config("quickstart", [*SETTINGS, f"search.storage={storage}"])
            options = SearchOptions(callbacks=[watch], console=Console(quiet=True))
            start_search(file, options)
    found = watch.before
    print(f"{len(found)} trials, s to the first step, median and range: {spread(found)}")


if __name__ == "__main__":
    main()
