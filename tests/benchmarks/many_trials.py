"""Does the driver slow down over a long search? `python -m tests.benchmarks.many_trials`

Runs a search of many instant trials through all that a real one runs through: Tune's controller,
Optuna and its journal file, the scheduler, our journal, MLflow on SQLite, tables, checkpoints and
the display. What is counted is the CPU time of the driver, in which all of these live, and its
memory; neither should grow with the number of trials.

A trial reports three times all metrics that a real one reports, and writes a checkpoint of a few
bytes. Before its last report, each trial is better than all before it: every comparison of ASHA is
made, and no trial is stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

os.environ.setdefault("RAY_AUTH_MODE", "token")  # before Ray is imported; see tests/conftest.py

import numpy as np
import pyarrow as pa
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
from tuning.checkpoints.files import trial_path
from tuning.config.schema import ResourcesConfig, SearchFile
from tuning.config.validation import load_config
from tuning.execution.cluster_resources import DRIVER_MEMORY
from tuning.execution.ray_session import concurrent_trials
from tuning.execution.run_search import SearchOptions, start_search
from tuning.mlflow_logging.callback import MlflowCallback
from tuning.reporting.html_report import REPORT_FILE, REPORT_FOLDER
from tuning.runs.callbacks import Callback
from tuning.runs.records import STEP, SearchRecord, TrialRecord, trial_number

BLOCK: Final = 200
WARM_UP: Final = 50
"""Trials at the start that the trends leave out: imports, migrations, caches."""
REPORTS: Final = 3


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


class Meter(Callback):
    """Reads the driver's clocks at the end of every trial; the last of the callbacks."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        """One for each trial that ended, in order; clocks since the start of the process."""

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
            memory, waiting = f"{last['rss_mb']:.0f} MB", f"{last['pending']:.0f} not in MLflow yet"
            print(f"{number} trials, {cpu:.1f} ms of CPU a trial, {memory}, {waiting}", flush=True)

    def _read(self) -> None:
        self.rows.append(
            {
                "cpu": time.process_time(),
                "rss_mb": resident_mb(),
                "pending": float(self._mlflow.num_pending),
            }
        )


def resident_mb() -> float:
    """Memory of this process that lies in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def run(file: SearchFile) -> list[dict[str, float]]:
    """The readings of a search of instant trials."""
    meter = Meter()

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
    ):
        console = Console(file=display, width=120)
        options = SearchOptions(callbacks=[meter], console=console, trainable=trainable)
        result = start_search(file, options)
    closing = time.process_time() - meter.rows[-1]["cpu"]
    size = (result.folder / REPORT_FOLDER / REPORT_FILE).stat().st_size
    print(f"closing the search: {closing:.1f} s of CPU, with a report of {size / 1e6:.1f} MB")
    if len(meter.rows) != 1 + file.search.budget.trials:
        raise RuntimeError(f"{len(meter.rows) - 1} trials ended")
    return meter.rows


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


def trends(rows: Sequence[Mapping[str, float]]) -> Table:
    """Cost and memory at the beginning and at the end."""
    cpu = 1e3 * np.diff([row["cpu"] for row in rows])
    rss = np.array([row["rss_mb"] for row in rows[1:]])
    table = Table("", "first quarter", "last quarter", "growth", title="linear fit")
    for name, values in (("CPU, ms a trial", cpu), ("RSS, MB", rss)):
        first, last, growth = trend(values)
        table.add_row(name, f"{first:.2f}", f"{last:.2f}", f"{growth:+.0f} %")
    return table


def main(argv: Sequence[str] = tuple(sys.argv[1:])) -> None:
    """Run the search, print the trends, and keep the readings where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, help="a CSV file for the readings")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="many-trials-") as storage:
        changes = [
            f"search.storage={storage}",
            f"search.budget.trials={arguments.trials}",
            "search.references=[]",
            f"search.sampler.name={arguments.sampler}",
        ]
        rows = run(load_config("quickstart", changes + arguments.set))
    if arguments.output:
        csv.write_csv(pa.Table.from_pylist(rows), arguments.output)
    console = Console(width=160)
    console.print(f"{arguments.trials} trials, sampler {arguments.sampler}")
    console.print(trends(rows))


if __name__ == "__main__":
    main()
