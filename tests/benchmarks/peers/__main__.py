"""What does a search cost beside Optuna's threads? `python -m tests.benchmarks.peers`

Both run the same trials of the quickstart (same images, model, steps and evaluations; a fixed list
of configurations, none stopped early), two at a time, each in processes of its own with everything
it needs to start: by default 4 trials, then 12, twice in turn. From both numbers follow the fixed
cost of a search and that of one more trial. CPU seconds are those of all processes of a contender,
read from the kernel twice a second: on a machine that others use they say more than wall seconds.
This project's cache of images and zero-shot features is empty at its start; all contenders have the
zero-shot head.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.overhead import spread
from trainers.data.store import CACHE_VARIABLE
from tuning.config.validation import load_config

OURS, NO_LINE, OPTUNA = "this project", "this project, line: off", "Optuna's threads"
CONTENDERS: dict[str, dict[str, Any]] = {
    OURS: {"module": "ours"},
    NO_LINE: {"module": "ours", "line": "off"},
    OPTUNA: {"module": "optuna_study"},
}
"""Module of this folder, and what it finds in its job beside the trials."""
OBJECTIVE = "val/mean_acc"
POLL_S = 0.5


@dataclass(frozen=True)
class Run:
    """What one contender took, and what it reported."""

    wall: float
    seconds: Counter[str]
    """CPU time by the name of the processes."""
    accuracy: float
    """Mean objective of the trials at their last steps."""

    @property
    def cpu(self) -> float:
        return self.seconds.total()


def measured(job):
    """Run a contender and wait for its end.

    Processes that live for less than `POLL_S`, and the last such interval of each, are not counted.
    """
    import_module("ray")  # brings psutil
    psutil = import_module("psutil")

    output, this = Path(job["output"]), psutil.Process()
    seconds = dict[Any, tuple[str, float]]()

    def read():
        for process in {*this.children(recursive=True), *seconds}:
            try:
                name, times = process.name().partition(".")[0], process.cpu_times()
                seconds[process] = name, times.user + times.system
            except psutil.NoSuchProcess:
                pass

    path, log = output / "job.json", output / "log.txt"
    path.write_text(json.dumps(job))
    command = [sys.executable, "-m", f"tests.benchmarks.peers.{job['module']}", str(path)]
    environment = {**os.environ, CACHE_VARIABLE: str(output / "cache")}
    began = time.time()
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            read()
            time.sleep(POLL_S)
    wall = time.time() - began
    if process.returncode:
        text = log.read_text()[-3000:]
        raise RuntimeError(f"{command} ended with {process.returncode}:\n{text}")
    by_name = Counter[str]()
    for name, used in seconds.values():
        by_name[name] += used
    reports = map(json.loads, (output / "results.jsonl").read_text().splitlines())
    finals = [report[OBJECTIVE] for report in reports if report["step"] == job["steps"]]
    assert len(finals) == len(job["trials"])
    return Run(wall, by_name, fmean(finals))


def costs(runs):
    """Fixed cost and cost of one more trial, from runs of the fewest and of the most trials.

    Args:
        runs: trials -> seconds of each round.

    Returns:
        Of each round, both in seconds.
    """
    few, many = min(runs), max(runs)
    found = []
    for less, more in zip(runs[few], runs[many], strict=True):
        marginal = (more - less) / (many - few)
        found.append((less - few * marginal, marginal))
    return found


def table(runs, clock):
    """Of each contender: seconds of its runs, fixed and marginal cost, and these beside Optuna's.

    Args:
        runs: name -> trials -> the runs of each round.
        clock: `wall` or `cpu`.
    """
    seconds = {
        name: {number: [getattr(run, clock) for run in found] for number, found in of.items()}
        for name, of in runs.items()
    }
    numbers = list(next(iter(seconds.values())))
    columns = [f"{number} trials" for number in numbers]
    beside = ["fixed", "- Optuna's", "one more trial", "/ Optuna's"]
    shown = Table("", *columns, *beside, title=f"{clock} seconds")
    of_optuna = costs(seconds[OPTUNA])
    for name, of in seconds.items():
        fixed, marginal = zip(*costs(of), strict=True)
        more = [own - other for own, (other, _) in zip(fixed, of_optuna, strict=True)]
        ratio = [own / other for own, (_, other) in zip(marginal, of_optuna, strict=True)]
        shown.add_row(
            name,
            *(spread(of[number], ".0f", fmean) for number in numbers),
            spread(fixed, ".0f", fmean),
            spread(more, "+.0f", fmean),
            spread(marginal, ".1f", fmean),
            spread(ratio, ".2f", fmean),
        )
    return shown


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, nargs=2, default=[4, 12])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=120)
    arguments = parser.parse_args()
    space = load_config("quickstart", [f"search.prior.points={max(arguments.trials) - 1}"])
    points = [
        {key.rpartition(".")[2]: value for key, value in point.items()}
        for point in space.search_space().initial_points
    ]
    job = {"steps": arguments.steps, "every": max(1, arguments.steps // 3)}
    runs = {name: {number: [] for number in arguments.trials} for name in CONTENDERS}
    for round_ in range(arguments.rounds):
        turns = [(number, name) for number in arguments.trials for name in CONTENDERS]
        for number, name in turns if round_ % 2 == 0 else reversed(turns):
            with TemporaryDirectory(prefix="peers-") as output:
                own = {"trials": points[:number], "output": output, **CONTENDERS[name]}
                run = measured({**job, **own})
            runs[name][number].append(run)
            most = ", ".join(
                f"{process} {used:.0f}" for process, used in run.seconds.most_common(8)
            )
            print(
                f"{name}, {number} trials: {run.wall:.0f} s, {run.cpu:.0f} CPU-seconds ({most}), "
                f"{OBJECTIVE} {run.accuracy:.2f}, load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    for clock in ("wall", "cpu"):
        Console(width=140).print(table(runs, clock))


if __name__ == "__main__":
    main()
