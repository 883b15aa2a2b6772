"""Does the driver slow down over a long search? `python -m tests.benchmarks.many_trials`

Runs a search of many instant trials through all that a real one runs through: Tune's controller,
Optuna and its journal file, the scheduler, our journal, MLflow on SQLite, tables, checkpoints and
the display. What is counted is the CPU time of the driver, in which all of these live, and its
memory; neither should grow with the number of trials.

A trial reports three times all metrics that a real one reports, and writes a checkpoint of a few
bytes. Trials run one after the other in the same processes, since starting one for each costs its
node a second and the driver little. Tune hangs on reused processes where a trial is stopped, so at
ASHA's rungs each trial is better than all before it: every comparison is made, and none is lost.

CPU time is that of all threads of the driver; the parts are those of the thread that runs Tune's
loop (`display` has one more), without what they call in other parts. `Tune and Ray` is the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
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
from functools import partial, wraps
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
from trainers.data.storage import open_store
from trainers.evaluation.evaluate import flat_metrics
from trainers.evaluation.metrics import metric_names
from trainers.fine_tune import REPORTED
from tuning.algorithms.budget import Budget
from tuning.algorithms.optuna_storage import open_storage
from tuning.algorithms.searcher import TrialProposer
from tuning.algorithms.studies import Studies, create_studies
from tuning.algorithms.tune_scheduler import StepScheduler
from tuning.checkpoints.files import TRAIN_FOLDER, trial_path
from tuning.checkpoints.retention import CheckpointCallback
from tuning.config.schema import SearchFile
from tuning.config.validation import load_config
from tuning.execution.ray_session import concurrent_trials, ray_session
from tuning.execution.ray_workarounds import tune_workarounds
from tuning.execution.trainable import DRIVER_MEMORY
from tuning.execution.tune_runner import create_tuner
from tuning.mlflow_logging.callback import MlflowCallback
from tuning.mlflow_logging.client import default_tracking_uri
from tuning.reporting.progress import ProgressCallback
from tuning.reporting.tables.callback import TablesCallback
from tuning.runs.callbacks import Callback
from tuning.runs.journal import History, Journal
from tuning.runs.records import (
    STEP,
    SearchRecord,
    TrialRecord,
    trial_name,
    trial_number,
)
from tuning.runs.run_folder import create_run_folder, search_record
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
    "tables": ((TablesCallback, _EVENTS),),
    "checkpoints": ((CheckpointCallback, _EVENTS),),
    "display": ((ProgressCallback, (*_EVENTS, "_renderable")),),
}
"""Parts of the driver that are ours, and the methods through which they are entered."""
REST: Final = "Tune and Ray"


def instant_trial(
    proposal: dict[str, Any], *, data: DataConfig, steps: int, folder: Path, concurrent: int
) -> None:
    """What a trial is here: figures out of its parameters and its number, and a checkpoint."""
    trial_id = proposal["trial_id"]
    number = trial_number(trial_id)
    noise, weight = random.Random(number), _pull(proposal["params"])
    train = folder / TRAIN_FOLDER
    _write_checkpoint(train / trial_path(trial_id) / "checkpoint_000001", steps)
    if number < concurrent:
        # Where a trial ends before all processes have started, Tune gives the process to the trial
        # that waits for its own, throws that one away, and starts another, again and again.
        _wait_for([train / trial_path(trial_name(other)) for other in range(concurrent)])
    for index in range(1, REPORTS + 1):
        accuracies = {data.id_domain: 80 - 5 * weight**2 + noise.gauss(0, 0.3)}
        for domain in data.ood_domains:
            accuracies[domain] = 50 + 8 * weight - 3 * weight**4 + noise.gauss(0, 0.5)
        measured = flat_metrics({d: {"acc": acc} for d, acc in accuracies.items()}, data, "val")
        report = {**dict.fromkeys((*REPORTED, *metric_names(data)), 1.0), **measured}
        if index < REPORTS:
            report["val/mean_acc"] = 100 + number  # never the worse part of a rung
        tune.report({STEP: steps * index // REPORTS, **report})


def _wait_for(folders: Sequence[Path]) -> None:
    while not all(folder.exists() for folder in folders):
        time.sleep(0.05)


def _pull(params: Mapping[str, Any]) -> float:
    """The parameters as a figure between 0 and 1, smooth in each."""
    values = [float(value) for _, value in sorted(params.items())]
    return float(np.mean([0.5 + 0.5 * np.sin(np.log(abs(v) + 1e-6)) for v in values]))


def _write_checkpoint(folder: Path, steps: int) -> None:
    folder.mkdir(parents=True)
    progress = json.dumps({"step": steps})
    save_file({"w": np.zeros(1)}, folder / WEIGHTS, metadata={"progress": progress})
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

    def __init__(self, mlflow: MlflowCallback, stopwatch: Stopwatch) -> None:
        self.rows: list[dict[str, float]] = []
        """One for each trial that ended, in order; clocks since the start of the process."""
        self._mlflow, self._stopwatch = mlflow, stopwatch

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
        file: its configuration; the run folder is made as for any other.
        live: draw the live display, as on a terminal; otherwise it prints lines.
    """
    run_folder = create_run_folder(file)
    history, stopwatch = History(), Stopwatch()
    data, steps = file.trial.data, file.trial.steps
    journal = Journal(run_folder)
    zero_shot = dict.fromkeys(metric_names(data), 40.0)
    search = search_record(file, run_folder, zero_shot, journal.run_id)
    journal.session_started(file.fingerprints())
    journal.zero_shot(dict(search.zero_shot))
    mlflow = MlflowCallback(
        default_tracking_uri(run_folder.parent), file.search.tracking.experiment
    )
    meter = Meter(mlflow, stopwatch)
    with (
        (run_folder / "display.txt").open("w") as display,
        ray_session(),
        tune_workarounds(),
        stopwatch.watching(),
        contextlib.closing(
            ProgressCallback(Console(file=display, force_terminal=live, width=120))
        ) as progress,
    ):
        budget = Budget(file.search.budget, search, history)
        callbacks = (
            budget,
            mlflow,
            TablesCallback(run_folder),
            CheckpointCallback(
                open_store(run_folder / TRAIN_FOLDER), file.search.checkpoints.disk_bytes
            ),
            progress,
            meter,
        )
        storage = open_storage(run_folder, None)
        studies = create_studies(
            search, file.search_space(), file.search.sampler, storage, journal.run_id
        )
        recorder = Recorder(search, journal, callbacks, studies=studies)
        recorder.start()
        proposer = TrialProposer(
            studies,
            recorder,
            lambda record: file.trial_config(record.params),
            may_propose=budget.allows,
            references=file.search.references,
        )
        concurrent = concurrent_trials(file.search.resources)
        trial = partial(
            instant_trial, data=data, steps=steps, folder=run_folder, concurrent=concurrent
        )
        tuner = create_tuner(
            tune.with_resources(trial, {"memory": DRIVER_MEMORY}),
            file,
            proposer,
            budget,
            recorder,
            history,
            concurrent,
            str(run_folder / "tune"),
            reuse_actors=True,
        )
        tuner.fit()
        recorder.finish("finished")
        closing = time.process_time() - meter.rows[-1]["cpu"]
        print(f"closing the search: {closing:.1f} s of CPU")
    journal.close()
    if len(meter.rows) != 1 + file.search.budget.trials:
        raise RuntimeError(f"{len(meter.rows) - 1} trials ended; see {run_folder}")
    return meter.rows


def per_trial(rows: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """CPU milliseconds of each trial, whole and by part, (trials,)."""
    names = ("cpu", "wall", *PARTS)
    each = {name: 1e3 * np.diff([row[name] for row in rows]) for name in names}
    each[REST] = each["cpu"] - sum(each[part] for part in PARTS)
    return each


def trend(values: np.ndarray) -> tuple[float, float, float]:
    """A straight line through all but the first WARM_UP values: its heights and its growth.

    Returns:
        The line in the middle of the first and of the last quarter, and the growth between in %.
    """
    numbers = np.arange(len(values))[WARM_UP:]
    slope, start = np.polyfit(numbers, values[WARM_UP:], 1)
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
