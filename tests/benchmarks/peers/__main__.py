"""A search of this project beside what users would do instead: `python -m tests.benchmarks.peers`

All contenders run the same trials of the quickstart (same images, model, steps and evaluations; a
fixed list of configurations, none stopped early), one after the other, two trials at a time, each
in processes of its own with everything it needs to start. CPU seconds are those of all processes of
a contender, read from the kernel twice a second: on a machine that others use they say more than
wall seconds. This project's cache of images and zero-shot features is empty at its start; all
contenders have the zero-shot head.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.spread import spread
from trainers.data.store import CACHE_VARIABLE
from tuning.config.validation import load_config

HERE = Path(__file__).parent
OURS, MAX = "this project", "val/mean_acc"
NO_LINE = "this project, line: off"
POLL_S = 0.5
Job = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What one contender took, and what it reported."""

    wall: float
    seconds: Counter[str]
    """CPU time by the name of the processes."""
    reports: list[dict[str, Any]]

    @property
    def cpu(self) -> float:
        return self.seconds.total()

    def final(self, steps):
        """Objective at the last step of each trial, by its parameters."""
        last = (report for report in self.reports if report["step"] == steps)
        return {json.dumps(report["params"], sort_keys=True): report[MAX] for report in last}


def module(name, **options):
    """Starts a contender that is a module and reads the job from a file."""

    def start(job):
        path = Path(job["output"]) / "job.json"
        path.write_text(json.dumps({**job, **options}))
        return popen([sys.executable, "-m", f"tests.benchmarks.peers.{name}", str(path)], job)

    return start


def shell_loop(job):
    length = {"steps": job["steps"], "every": job["every"]}
    lines = [
        shlex.join(f"--{name.replace('_', '-')}={value}" for name, value in {**p, **length}.items())
        for p in job["trials"]
    ]
    process = popen([str(HERE / "shell_loop.sh"), job["output"]], job, stdin=subprocess.PIPE)
    with process.stdin:
        process.stdin.write("\n".join(lines) + "\n")
    return process


CONTENDERS: dict[str, Callable[[Job], subprocess.Popen[str]]] = {
    OURS: module("ours"),
    NO_LINE: module("ours", line="off"),
    "shell loop": shell_loop,
    "Ray Tune": module("ray_tune"),
    "Optuna": module("optuna_study"),
}


def popen(command, job, **options):
    """A process whose output goes to a file, with this Python first in its path."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "RAY_TRAIN_V2_ENABLED": "1"}
    if "ours" in command[-2]:
        environment[CACHE_VARIABLE] = str(Path(job["output"]) / "cache" / "arrow")
    log = (Path(job["output"]) / "log.txt").open("w")
    return subprocess.Popen(
        command, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True, **options
    )


def measured(start, job):
    """Run a contender and wait for its end.

    Processes that live for less than `POLL_S`, and the last such interval of each, are not counted.
    """
    import_module("ray")  # brings psutil
    psutil = import_module("psutil")

    this, seconds = psutil.Process(), dict[Any, tuple[str, float]]()

    def read():
        for process in {*this.children(recursive=True), *seconds}:
            try:
                name, times = process.name().partition(".")[0], process.cpu_times()
                seconds[process] = name, times.user + times.system
            except psutil.NoSuchProcess:
                pass

    began = time.time()
    process = start(job)
    while process.poll() is None:
        read()
        time.sleep(POLL_S)
    wall = time.time() - began
    log = (Path(job["output"]) / "log.txt").read_text()
    if process.returncode:
        raise RuntimeError(f"{process.args} ended with {process.returncode}:\n{log[-3000:]}")
    lines = (Path(job["output"]) / "results.jsonl").read_text().splitlines()
    by_name = Counter[str]()
    for name, used in seconds.values():
        by_name[name] += used
    return Run(wall, by_name, [json.loads(line) for line in lines])


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    arguments = parser.parse_args()
    job: Job = {"steps": arguments.steps, "every": max(1, arguments.steps // 3)}
    space = load_config("quickstart", [f"search.prior.points={arguments.trials - 1}"])
    points = space.search_space().initial_points
    job["trials"] = [{k.rpartition(".")[2]: v for k, v in point.items()} for point in points]
    runs: dict[str, list[Run]] = {name: [] for name in arguments.contenders}
    for repeat in range(arguments.repeats):
        for name in runs if repeat % 2 == 0 else reversed(runs):
            with TemporaryDirectory(prefix="peers-") as output:
                runs[name].append(measured(CONTENDERS[name], {**job, "output": output}))
            run, load = runs[name][-1], os.getloadavg()[0]
            print(f"{name}: {run.wall:.0f} s, {run.cpu:.0f} s of CPU, load {load:.1f}", flush=True)
            most = run.seconds.most_common(8)
            print(
                "  CPU:", ", ".join(f"{process} {used:.0f}" for process, used in most), flush=True
            )
    Console(width=110).print(same_trials(runs, job))


def same_trials(runs, job):
    """Seconds, ratios to ours of the same repeat, and how far the final objectives are apart."""
    title = f"{len(job['trials'])} trials of {job['steps']} steps"
    table = Table("", "wall, s", "/ ours", "CPU, s", "/ ours", f"{MAX} - ours", title=title)
    for name, found in runs.items():
        cells = []
        for measure in ("wall", "cpu"):
            own = [getattr(run, measure) for run in found]
            cells.append(spread(own, ".0f", fmean))
            base = [getattr(run, measure) for run in runs.get(OURS, [])]
            cells.append(spread([a / b for a, b in zip(own, base, strict=False)], ".2f", fmean))
        gaps = []
        for run, base in zip(found, runs.get(OURS, []), strict=False):
            own, their = run.final(job["steps"]), base.final(job["steps"])
            gaps.append(fmean(own[key] - their[key] for key in their))
        table.add_row(name, *cells, spread(gaps, "+.2f", fmean))
    return table


if __name__ == "__main__":
    main()
