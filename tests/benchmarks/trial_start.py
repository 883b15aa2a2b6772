"""What does it cost to start a trial? `python -m tests.benchmarks.trial_start`

Trials of the embedded tiny CLIP, in turn, in the workers of a search. Shown is the time from the
end of the trial before it to its first step, and from its first step to its end without what its
loop took: checkpoints, reports and their judgement. `--memory 50` shows instead what the processes
of one slot hold in memory over so many trials, about half of which early stopping ends.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from ray._private.state import actors  # without a dashboard, `list_actors` has no answer
from rich.console import Console
from rich.table import Table

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


MEMORY_SETTINGS = (
    "trial.steps=4",
    "trial.eval.every=2",
    "trial.eval.rung_images=200",
    "search.references=[]",
    "search.scheduler={name: asha, grace_steps: 2, reduction_factor: 2}",
    "search.sampler.name=random",
    "search.resources.max_concurrent=1",
)
SLOT = {
    "RayTrainWorker": "worker",
    "ResourceTrainable": "its driver",
    "TrainController": "controller",
    "Exchange": "exchange",
}
"""Ray's actors of a slot by the end of their names: the worker, and three on the head."""


class MemoryWatch(Callback):
    """Resident memory of the driver and of a slot's processes after each trial, in MiB.

    A worker still holds the state of a trial that early stopping has just ended.
    """

    def __init__(self):
        self.mib: dict[str, list[float]] = {name: [] for name in (*SLOT.values(), "search")}

    def trial_ended(self, record):
        """Read what the kernel knows."""
        alive = [a for a in actors().values() if a["State"] == "ALIVE"]
        held = dict.fromkeys(self.mib, 0.0)
        named = ((a["ActorClassName"].rpartition(".")[2], a["Pid"]) for a in alive)
        of_slot = ((SLOT[name], pid) for name, pid in named if name in SLOT)
        for name, pid in [*of_slot, ("search", os.getpid())]:
            with suppress(OSError, ValueError):  # it has just ended
                (kib,) = re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
                held[name] += int(kib) / 1024
        for name, found in self.mib.items():
            found.append(held[name])


def memory(trials):
    """MiB of each process after the first trials, in the middle and at the end, and the growth."""
    watch = MemoryWatch()
    with ray_session(), tempfile.TemporaryDirectory(prefix="trial-start-") as folder:
        settings = [*MEMORY_SETTINGS, f"search.budget.trials={trials}", f"search.storage={folder}"]
        file = load_config("quickstart", settings)
        start_search(file, SearchOptions(callbacks=[watch], console=Console(quiet=True)))
    fifth = max(2, trials // 5)
    table = Table("", *(f"after trial {n}" for n in (1, fifth, trials // 2, trials)), "MiB a trial")
    for name, mib in watch.mib.items():
        shown = [f"{mib[n - 1]:.0f}" for n in (1, fifth, trials // 2, trials)]
        later = mib[fifth:]  # what is allocated once is there by then
        slope, _ = statistics.linear_regression(range(len(later)), later)
        table.add_row(name, *shown, f"{slope:+.2f}")
    return table


class Stopwatch(Callback):
    """Seconds before and beside the loop of each trial but the first one."""

    def __init__(self):
        self.before: list[float] = []
        self.beside: list[float] = []
        self._ended: float | None = None

    def search_started(self, search):
        """The first trial of each search starts the workers and is not measured."""
        self._ended = None

    def trial_reported(self, record):
        """The first report says how long the loop took since the first step."""
        if self._ended is not None and len(record.curve) == 1:
            self._first_step = time.time() - record.metrics["cost/seconds"]
            self.before.append(self._first_step - self._ended)

    def trial_ended(self, record):
        """The next trial is measured from here."""
        now = time.time()
        if self._ended is not None:
            self.beside.append(now - self._first_step - record.metrics["cost/seconds"])
        self._ended = now


def main():
    """Run the searches, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, metavar="TRIALS")
    arguments = parser.parse_args()
    if arguments.memory is not None:
        Console(width=100).print(memory(arguments.memory))
        return
    rounds = arguments.rounds
    watch = Stopwatch()
    with ray_session(), tempfile.TemporaryDirectory(prefix="trial-start-") as folder:
        for number in range(rounds):
            storage = Path(folder) / str(number)
            file = load_config("quickstart", [*SETTINGS, f"search.storage={storage}"])
            options = SearchOptions(callbacks=[watch], console=Console(quiet=True))
            start_search(file, options)
    table = Table("", "trials", "s, median and range")
    for name, seconds in (
        ("in the workers of a search, to the first step", watch.before),
        ("in the workers of a search, beside the loop", watch.beside),
    ):
        table.add_row(name, str(len(seconds)), spread(seconds))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
