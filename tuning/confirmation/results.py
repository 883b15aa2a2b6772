"""Results on the test splits: `confirm/results.jsonl`, one line per configuration and seed.

A line is appended and synced when its job has ended, and never changed: a result in the file is not
measured again. `confirm/results.parquet` is derived from it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow as pa
from pydantic import TypeAdapter

from trainers.errors import ConfigError, storage_failures
from tuning.confirmation.statistics import Estimate, estimate, paired_difference
from tuning.runs.journal import append_synced, open_locked
from tuning.runs.records import ZERO_SHOT, ParamValue, SearchRecord
from tuning.views.tables.arrow import metric_fields, param_fields, plain_table, write_atomically

CONFIRM_FOLDER = "confirm"
RESULTS_FILE = "results.jsonl"
TABLE_FILE = "results.parquet"
FT = "ft"
"""Id of the reference, plain fine-tuning."""
SPLIT = "test"
END = "line/1/"
"""Prefix of test accuracies at the end of a training, where a point before it was chosen."""
COSTS = ("cost/seconds", "cost/gpu_seconds", "cost/cpu_seconds")
"""Metrics of one training, evaluations included."""

Key: TypeAlias = tuple[str, int | None]
"""Trial id and seed; the seed of the zero-shot model is None."""


@dataclass(frozen=True)
class TestResult:
    """Metrics of one configuration, trained with one seed, on the test splits."""

    __test__ = False  # pytest would collect a class of this name

    trial_id: str
    """`trial-007`, `ft`, or `zero-shot`."""
    kind: Literal["trial", "reference", "zero_shot"]
    seed: int | None
    params: Mapping[str, ParamValue]
    labels: tuple[str, ...]
    """Rules that chose it when it was measured."""
    metrics: Mapping[str, float]
    """Metrics of the test splits; of a training also its `COSTS`, and on the validation splits ID
    and mean OOD accuracy and what the search chooses by."""

    @property
    def key(self) -> Key:
        """Trial id and seed."""
        return self.trial_id, self.seed


_RESULT = TypeAdapter(TestResult)
_FIELDS = (
    pa.field("trial_id", pa.string()),
    pa.field("kind", pa.string()),
    pa.field("seed", pa.int64()),
    pa.field("labels", pa.string()),
)


@dataclass(frozen=True)
class Configuration:
    """A configuration that is trained again: a trial of the search, or plain fine-tuning."""

    trial_id: str
    params: Mapping[str, ParamValue]
    labels: tuple[str, ...] = ()
    """Rules that chose it: `objective #1`, `id_val`, `leave_one_domain_out/sketch+clipart`, ..."""
    looks_at_ood: bool = False
    """Whether one of these choices used OOD validation data."""
    method: str | None = None
    """Its method; None if the search does not name one."""
    best_of_method: bool = False
    """Whether it was chosen as the best of its method."""
    misses: bool = False
    """Whether it misses a constraint of the search, because no trial meets all."""


@dataclass(frozen=True)
class Confirmation:
    """The results on the test splits over fresh seeds."""

    search: SearchRecord
    seeds: tuple[int, ...]
    configurations: tuple[Configuration, ...]
    """Plain fine-tuning first."""
    results: Mapping[Key, TestResult]
    """All results, including those of earlier calls with other seeds or configurations."""
    failed: Mapping[Key, str]
    """Jobs that failed, with the error in one line; the next call tries them again."""

    @property
    def run_folder(self) -> Path:
        """The run folder of the search, in which the results are kept."""
        return self.search.run_folder

    @property
    def methods(self) -> tuple[Configuration, ...]:
        """The best of each method, in the order of validation; empty unless there are several."""
        found = tuple(one for one in self.configurations if one.best_of_method)
        return found if len(found) > 1 else ()

    @property
    def zero_shot(self) -> Mapping[str, float]:
        """Finite metrics of the zero-shot model; empty if its evaluation failed."""
        result = self.results.get((ZERO_SHOT, None))
        return _finite(result.metrics) if result else {}

    def values(self, trial_id: str, metric: str) -> dict[int, float]:
        """Seed -> value, for the seeds that have a finite value of the metric."""
        results = {seed: self.results.get((trial_id, seed)) for seed in self.seeds}
        found = {seed: _finite(r.metrics).get(metric) for seed, r in results.items() if r}
        return {seed: value for seed, value in found.items() if value is not None}

    def estimate(self, trial_id: str, metric: str) -> Estimate | None:
        """The mean over the seeds; None if none has a result."""
        values = self.values(trial_id, metric)
        return estimate(list(values.values())) if values else None

    def means(self, trial_id: str) -> dict[str, float]:
        """The mean of each metric over the seeds that have a result."""
        results = [r for seed in self.seeds if (r := self.results.get((trial_id, seed)))]
        names = dict.fromkeys(name for result in results for name in result.metrics)
        found = {name: self.estimate(trial_id, name) for name in names}
        return {name: estimate.mean for name, estimate in found.items() if estimate}

    def against(self, other_id: str, trial_id: str, metric: str) -> Estimate | None:
        """The difference to another configuration, paired by seed; None if they share no seed."""
        ours, its = self.values(trial_id, metric), self.values(other_id, metric)
        return paired_difference(ours, its) if ours.keys() & its.keys() else None

    def against_zero_shot(self, trial_id: str, metric: str) -> Estimate | None:
        """The difference to the zero-shot model; None for a metric that it lacks, such as costs."""
        values = self.values(trial_id, metric)
        constant = self.zero_shot.get(metric)
        if not values or constant is None:
            return None
        return estimate([value - constant for value in values.values()])


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


class ResultsFile:
    """The results file of a run folder, open for the only process that may append to it.

    Raises:
        ConfigError: another process is confirming this run.
    """

    def __init__(self, run_folder: Path) -> None:
        path = self._path = results_path(run_folder)
        path.parent.mkdir(exist_ok=True)
        self._file = open_locked(path, f"{run_folder}: another process is confirming this run")

    def close(self) -> None:
        """Let another process append."""
        self._file.close()

    def append(self, result: TestResult) -> None:
        """Append a result and sync the file.

        Raises:
            StorageFailed: the disk is full or fails.
        """
        with storage_failures(self._path, "cannot be written"):
            append_synced(self._file, json.dumps(dataclasses.asdict(result)).encode() + b"\n")


def results_path(run_folder: Path) -> Path:
    """Path of the results of a run."""
    return run_folder / CONFIRM_FOLDER / RESULTS_FILE


def read_results(run_folder: Path) -> dict[Key, TestResult]:
    """All results so far; an incomplete last line (the writer was killed) is left out.

    Raises:
        ConfigError: the file is damaged before its last line.
    """
    path = results_path(run_folder)
    found: dict[Key, TestResult] = {}
    if not path.is_file():
        return found
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            result = _RESULT.validate_python(json.loads(line))
        except (ValueError, RecursionError):
            raise ConfigError(f"line {number} cannot be read", source=path) from None
        found.setdefault(result.key, result)
    return found


def write_results_table(run_folder: Path, results: Sequence[TestResult]) -> Path:
    """Write the results as Parquet, one row per configuration and seed; returns the path.

    Columns: trial_id, kind, seed, labels, then one per parameter and one per metric.
    """
    rows: list[dict[str, Any]] = [
        {
            "trial_id": result.trial_id,
            "kind": result.kind,
            "seed": result.seed,
            "labels": ", ".join(result.labels),
            **result.params,
            **result.metrics,
        }
        for result in results
    ]
    fields = [
        *_FIELDS,
        *param_fields(result.params for result in results),
        *metric_fields(result.metrics for result in results),
    ]
    path = run_folder / CONFIRM_FOLDER / TABLE_FILE
    write_atomically(plain_table(rows, fields), path)
    return path
