"""Does the driver slow down over a long search? `python -m tests.benchmarks.many_trials`

Runs a search of many instant trials through all that a real one runs through: Tune's controller,
Optuna and its journal file, the scheduler, our journal, MLflow on SQLite, tables, checkpoints and
the display. What is counted is the CPU time of the driver, in which all of these live, and its
memory; neither should grow with the number of trials.

A trial reports three times all metrics that a real one reports, and writes a checkpoint of a few
bytes. Before its last report, each trial is better than all before it: every comparison of ASHA is
made, and no trial is stopped.

CPU time is that of all threads of the driver; the parts are those of the thread that runs Tune's
loop, without what they call in other parts. `Tune and Ray` is the rest.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

os.environ.setdefault("RAY_AUTH_MODE", "token")  # before Ray is imported; see tests/conftest.py

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv
from ray import tune
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file

from trainers.checkpoints.format import STATE, WEIGHTS
from trainers.config import DataConfig
from trainers.evaluation.evaluate import flat_metrics
from trainers.evaluation.metrics import metric_names
from trainers.fine_tune import REPORTED
from tuning.algorithms.budget import Budget
from tuning.algorithms.searcher import TrialProposer
from tuning.algorithms.studies import Studies
from tuning.algorithms.tune_scheduler import StepScheduler
from tuning.checkpoints.files import trial_path
from tuning.checkpoints.retention import CheckpointCallback
from tuning.config.schema import ResourcesConfig, SearchFile
from tuning.config.validation import load_config
from tuning.execution.cluster_resources import DRIVER_MEMORY
from tuning.execution.ray_session import concurrent_trials
from tuning.execution.run_search import SearchOptions, start_search
from tuning.mlflow_logging.callback import MlflowCallback
from tuning.reporting.callback import ResultsCallback
from tuning.reporting.html_report import REPORT_FILE, REPORT_FOLDER
from tuning.reporting.progress import ProgressCallback
from tuning.runs.callbacks import Callback
from tuning.runs.journal import Journal
from tuning.runs.records import (
    STEP,
    SearchRecord,
    TrialRecord,
    trial_number,
)
from tuning.runs.tune_callback import Recorder

BLOCK: Final = 200
WARM_UP: Final = 50
"""Trials at the start that the trends leave out: imports, migrations, caches."""
REPORTS: Final = 3
_EVENTS: Final = ("trial_started", "trial_reported", "trial_ended")
PARTS: Final[Mapping[str, tuple[tuple[type, tuple[str, ...]], ...]]] = {
    "propose": ((TrialProposer, ("suggest",)),),
    "tell": ((Studies, ("trial_reported", "trial_ended")),),
    "scheduler": ((StepScheduler, ("on_trial_result", "choose_trial_to_run")),),
    "recorder": (
        (Recorder, ("on_trial_start", "on_trial_result", "on_trial_complete", "on_step_end")),
        (Journal, ("_append",)),
        (Budget, _EVENTS),
    ),
    "MLflow": ((MlflowCallback, _EVENTS),),
    "tables": ((ResultsCallback, (*_EVENTS, "search_ended")),),
    "checkpoints": ((CheckpointCallback, _EVENTS),),
    "display": ((ProgressCallback, _EVENTS),),
}
"""Parts of the driver that are ours, and the methods through which they are entered."""
REST: Final = "Tune and Ray"


class InstantSlot(tune.Trainable):
    """What a slot is here: figures out of a trial's parameters and number, and a checkpoint."""

    data: DataConfig
    steps: int
    folder: Path
    """Of the checkpoints of all trials."""
    started: Path
    """Folder with one file for each process that has started."""
    concurrent: int

    def setup(self, config: dict[str, Any]) -> None:
        """Start the first trial, together with those of the other slots.

        Where a trial ends before all processes have started, Tune gives the process to the trial
        that waits for its own, throws that one away, and starts another, again and again.
        """
        self.reset_config(config)
        (self.started / str(os.getpid())).touch()
        while len(list(self.started.iterdir())) < self.concurrent:
            time.sleep(0.05)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on to another trial."""
        trial_id = new_config["trial_id"]
        self.number, self.index = trial_number(trial_id), 0
        self.noise, self.weight = random.Random(self.number), _pull(new_config["params"])
        checkpoint = self.folder / trial_path(trial_id) / "checkpoint_000001"
        _write_checkpoint(checkpoint, self.steps)
        return True

    def step(self) -> dict[str, Any]:
        """The next report."""
        self.index += 1
        data, noise, weight = self.data, self.noise, self.weight
        accuracies = {data.id_domain: 80 - 5 * weight**2 + noise.gauss(0, 0.3)}
        for domain in data.ood_domains:
            accuracies[domain] = 50 + 8 * weight - 3 * weight**4 + noise.gauss(0, 0.5)
        measured = flat_metrics(
            {d: {"acc": acc, "nll": -math.log(acc / 100)} for d, acc in accuracies.items()},
            data,
            "val",
        )
        report = {**dict.fromkeys((*REPORTED, *metric_names(data)), 1.0), **measured}
        if self.index < REPORTS:
            report["val/mean_acc"] = 100 + self.number  # never the worse part of a rung
        step = self.steps * self.index // REPORTS
        return {STEP: step, **report, "done": self.index == REPORTS}


def _pull(params: Mapping[str, Any]) -> float:
    """The parameters as a figure between 0 and 1, smooth in each."""
    values = [float(value) for _, value in sorted(params.items())]
    return float(np.mean([0.5 + 0.5 * np.sin(np.log(abs(v) + 1e-6)) for v in values]))


def _write_checkpoint(folder: Path, steps: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header = {"progress": {"step": steps}, "crc32": 0}
    header |= {name: [] for name in ("classes", "reports", "train_curves")}
    metadata = {name: json.dumps(value) for name, value in header.items()}
    save_file({"w": np.zeros(1)}, folder / WEIGHTS, metadata=metadata)
    (folder / STATE).write_bytes(b"state")


@dataclass
class Stopwatch:
    """CPU seconds of each part, without the parts that it calls."""

    seconds: Counter[str] = field(default_factory=Counter)
    _thread: threading.local = field(default_factory=threading.local)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time put down to that part."""

        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            callers: list[float] = self._thread.__dict__.setdefault("inner", [0.0])
            callers.append(0.0)
            began = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                took = time.thread_time() - began
                self.seconds[part] += took - callers.pop()
                callers[-1] += took

        return call

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time all PARTS while the context lasts."""
        with ExitStack() as stack:
            for part, entries in PARTS.items():
                for owner, names in entries:
                    for name in names:
                        timed = self.timed(part, getattr(owner, name))
                        stack.enter_context(patch.object(owner, name, timed))
            yield


class Meter(Callback):
    """Reads the driver's clocks at the end of every trial; the last of the callbacks."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.rows: list[dict[str, float]] = []
        """One for each trial that ended, in order; clocks since the start of the process."""
        self._stopwatch = stopwatch

    def mlflow(self, *arguments: Any) -> MlflowCallback:
        """Make the search's callback for MLflow, whose backlog is read."""
        self._mlflow = MlflowCallback(*arguments)
        return self._mlflow

    def search_started(self, search: SearchRecord) -> None:
        """The first reading."""
        self._read()

    def trial_ended(self, record: TrialRecord) -> None:
        """A reading, and a sign of life at the end of each block."""
        self._read()
        if (number := len(self.rows) - 1) % BLOCK == 0:
            first, last = self.rows[-1 - BLOCK], self.rows[-1]
            cpu = 1e3 * (last["cpu"] - first["cpu"]) / BLOCK
            print(
                f"{number} trials, {cpu:.1f} ms of CPU a trial, {last['rss_mb']:.0f} MB", flush=True
            )

    def _read(self) -> None:
        self.rows.append(
            {
                "wall": time.monotonic(),
                "cpu": time.process_time(),
                "rss_mb": resident_mb(),
                "pending": float(self._mlflow.num_pending),
                **{part: self._stopwatch.seconds[part] for part in PARTS},
            }
        )


def resident_mb() -> float:
    """Memory of this process that lies in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def run(file: SearchFile, live: bool = False) -> list[dict[str, float]]:
    """The readings of a search of instant trials.

    Args:
        file: its configuration.
        live: draw the live display, as on a terminal; otherwise it prints lines.
    """
    stopwatch = Stopwatch()
    meter = Meter(stopwatch)

    def trainable(checkpoints: str, resources: ResourcesConfig) -> Any:
        common = {
            "data": file.trial.data,
            "steps": file.trial.steps,
            "folder": Path(checkpoints),
            "started": started,
            "concurrent": concurrent_trials(resources),
        }
        slot = type("InstantSlot", (InstantSlot,), common)
        return tune.with_resources(slot, {"memory": DRIVER_MEMORY})

    zero_shot = dict.fromkeys(metric_names(file.trial.data), 40.0)
    storage = Path(file.search.storage)
    started = storage / "started"
    started.mkdir()
    with (
        (storage / "display.txt").open("w") as display,
        patch("tuning.execution.run_search.zero_shot_metrics", lambda *_, **__: zero_shot),
        patch("tuning.execution.run_search.MlflowCallback", meter.mlflow),
        stopwatch.watching(),
    ):
        console = Console(file=display, force_terminal=live, width=120)
        options = SearchOptions(callbacks=[meter], console=console, trainable=trainable)
        result = start_search(file, options)
    closing = time.process_time() - meter.rows[-1]["cpu"]
    results = stopwatch.seconds["tables"] - meter.rows[-1]["tables"]
    page = result.folder / REPORT_FOLDER / REPORT_FILE
    print(
        f"closing the search: {closing:.1f} s of CPU, {results:.1f} s of it for the last tables "
        f"and a report of {page.stat().st_size / 1e6:.1f} MB"
    )
    if len(meter.rows) != 1 + file.search.budget.trials:
        raise RuntimeError(f"{len(meter.rows) - 1} trials ended")
    return meter.rows


def per_trial(rows: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """CPU milliseconds of each trial, whole and by part, (trials,)."""
    names = ("cpu", "wall", *PARTS)
    each = {name: 1e3 * np.diff([row[name] for row in rows]) for name in names}
    each[REST] = each["cpu"] - sum(each[part] for part in PARTS)
    return each


def trend(values: np.ndarray) -> tuple[float, float, float]:
    """A straight line through all but the first values: its heights and its growth.

    Left out are WARM_UP values, or half of all if these are fewer.

    Returns:
        The line in the middle of the first and of the last quarter, and the growth between in %.
    """
    numbers = np.arange(len(values))[min(WARM_UP, len(values) // 2) :]
    slope, start = np.polyfit(numbers, values[numbers], 1)
    first, last = (float(start + slope * np.quantile(numbers, at)) for at in (1 / 8, 7 / 8))
    return first, last, 100 * (last / first - 1) if first > 0 else float("nan")


def tables(rows: Sequence[Mapping[str, float]]) -> tuple[Table, Table]:
    """The figures by block, and their trends."""
    each = per_trial(rows)
    columns = ("cpu", *PARTS, REST)
    by_block = Table("trials", *columns, "wall", "RSS MB", "pending", title="ms a trial")
    for start in range(0, len(rows) - 1, BLOCK):
        end = min(start + BLOCK, len(rows) - 1)
        means = [f"{each[name][start:end].mean():.1f}" for name in (*columns, "wall")]
        last = rows[end]
        by_block.add_row(
            f"{start}-{end - 1}", *means, f"{last['rss_mb']:.0f}", f"{last['pending']:.0f}"
        )
    trends = Table("", "first quarter", "last quarter", "growth", title="linear fit")
    for name in columns:
        first, last, growth = trend(each[name])
        trends.add_row(f"{name}, ms a trial", f"{first:.2f}", f"{last:.2f}", f"{growth:+.0f} %")
    first, last, growth = trend(np.array([row["rss_mb"] for row in rows[1:]]))
    trends.add_row("RSS, MB", f"{first:.0f}", f"{last:.0f}", f"{growth:+.0f} %")
    return by_block, trends


def read_file(arguments: argparse.Namespace, storage: Path) -> SearchFile:
    """The quickstart with many trials, and what the command line changes in it."""
    trials = int(arguments.trials)
    return load_config(
        "quickstart",
        [
            f"search.storage={storage}",
            f"search.budget.trials={trials}",
            "search.references=[]",
            f"search.sampler.name={arguments.sampler}",
            *arguments.set,
        ],
    )


def main(argv: Sequence[str] = tuple(sys.argv[1:])) -> None:
    """Run the search, print the tables, and keep the readings where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--live", action="store_true", help="draw the display, as on a terminal")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, help="a Parquet or CSV file for the readings")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="many-trials-") as storage:
        rows = run(read_file(arguments, Path(storage)), arguments.live)
    if arguments.output:
        table = pa.Table.from_pylist(rows)
        if arguments.output.suffix == ".csv":
            csv.write_csv(table, arguments.output)
        else:
            pq.write_table(table, arguments.output)
    console = Console(width=160)
    console.print(f"{arguments.trials} trials, sampler {arguments.sampler}")
    for table in tables(rows):
        console.print(table)


if __name__ == "__main__":
    main()
