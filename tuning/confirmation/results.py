"""What was measured on the test splits: `confirm/results.jsonl`, one line a configuration and seed.

A line is appended and synced as soon as its run has ended, and never changed: what stands there is
never trained or evaluated again. `confirm/results.parquet` is made from it, for reading.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

import pyarrow as pa

from trainers.errors import ConfigError, storage_failures
from tuning.confirmation.statistics import Estimate, difference, estimate, paired_difference
from tuning.reporting.tables.arrow import write_atomically
from tuning.runs.append_log import append_synced, open_alone
from tuning.runs.records import ZERO_SHOT, ParamValue, SearchRecord

CONFIRM_FOLDER = "confirm"
RESULTS_FILE = "results.jsonl"
TABLE_FILE = "results.parquet"
FT = "ft"
"""The reference: plain fine-tuning."""
SPLIT = "test"
COSTS = ("cost/seconds", "cost/gpu_seconds", "cost/cpu_seconds")
"""Of one training, evaluations included."""

Key: TypeAlias = tuple[str, int | None]
"""Trial and seed; the zero-shot model has no seed."""


@dataclass(frozen=True)
class TestResult:
    """One configuration, trained with one seed, on the test splits."""

    __test__ = False  # no class of tests, whatever its name says to pytest

    trial_id: str
    """`trial-007`, `ft`, or `zero-shot`."""
    kind: Literal["trial", "reference", "zero_shot"]
    seed: int | None
    params: Mapping[str, ParamValue]
    labels: tuple[str, ...]
    """Why it was confirmed, at the time."""
    metrics: Mapping[str, float]
    """Of the test splits, and under `COSTS` what training took."""

    @property
    def key(self) -> Key:
        """What makes it one of its kind."""
        return self.trial_id, self.seed


@dataclass(frozen=True)
class Configuration:
    """What is trained again: a trial of the search, or plain fine-tuning."""

    trial_id: str
    params: Mapping[str, ParamValue]
    labels: tuple[str, ...] = ()
    """Why it is here: `objective #1`, `id_val`, `leave_one_domain_out/sketch+clipart`, ..."""
    looks_at_ood: bool = False
    """Whether OOD validation data had a say in one of these choices."""
    method: str | None = None
    """What it trains with; None where the search does not say."""
    best_of_method: bool = False
    """Whether it is here as the best of its method, so that it stands for the method."""


@dataclass(frozen=True)
class Confirmation:
    """What was measured on the test splits, over fresh seeds."""

    search: SearchRecord
    seeds: tuple[int, ...]
    configurations: tuple[Configuration, ...]
    """Plain fine-tuning first."""
    results: Mapping[Key, TestResult]
    """By trial and seed; those of earlier calls with other seeds or configurations among them."""
    failed: Mapping[Key, str]
    """What could not be measured, and why in one line; the next call tries it again."""

    @property
    def methods(self) -> tuple[Configuration, ...]:
        """The best of each method, as validation ranked them; none where there are not several."""
        found = tuple(one for one in self.configurations if one.best_of_method)
        return found if len(found) > 1 else ()

    @property
    def zero_shot(self) -> Mapping[str, float]:
        """The model before any step; empty where its evaluation failed."""
        result = self.results.get((ZERO_SHOT, None))
        return result.metrics if result else {}

    def values(self, trial_id: str, metric: str) -> dict[int, float]:
        """By seed; a metric that is absent is left out."""
        found = {seed: self.results.get((trial_id, seed)) for seed in self.seeds}
        return {s: r.metrics[metric] for s, r in found.items() if r and metric in r.metrics}

    def estimate(self, trial_id: str, metric: str) -> Estimate | None:
        """Over the seeds; None where none has a result."""
        values = self.values(trial_id, metric)
        return estimate(list(values.values())) if values else None

    def against_ft(self, trial_id: str, metric: str) -> Estimate | None:
        """The difference to plain fine-tuning, the reference, as of `against`."""
        return self.against(FT, trial_id, metric)

    def against(self, other_id: str, trial_id: str, metric: str) -> Estimate | None:
        """The difference to another configuration, paired by seed; None with no seed in common."""
        ours, its = self.values(trial_id, metric), self.values(other_id, metric)
        return paired_difference(ours, its) if ours.keys() & its.keys() else None

    def against_zero_shot(self, trial_id: str, metric: str) -> Estimate | None:
        """The difference to the zero-shot model, which no seed changes."""
        values = self.values(trial_id, metric)
        constant = self.zero_shot.get(metric)  # which has no cost
        return difference(values, constant) if values and constant is not None else None


class ResultsFile:
    """The file of a run folder, open for the one process that may add to it.

    Raises:
        ConfigError: another process is confirming this run.
    """

    def __init__(self, run_folder: Path) -> None:
        path = self._path = results_path(run_folder)
        path.parent.mkdir(exist_ok=True)
        self._file = open_alone(path, f"{run_folder}: another process is confirming this run")

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, result: TestResult) -> None:
        """Keep it for good.

        Raises:
            StorageFailed: the disk is full, or fails.
        """
        with storage_failures(self._path, "cannot be written"):
            append_synced(self._file, json.dumps(dataclasses.asdict(result)).encode() + b"\n")


def results_path(run_folder: Path) -> Path:
    """Where the results of a run are."""
    return run_folder / CONFIRM_FOLDER / RESULTS_FILE


def read_results(run_folder: Path) -> dict[Key, TestResult]:
    """The results so far, none where nothing was confirmed; a torn last line is left out.

    Raises:
        ConfigError: the file is damaged in its midst.
    """
    path = results_path(run_folder)
    found: dict[Key, TestResult] = {}
    if not path.is_file():
        return found
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            values = json.loads(line)
            result = TestResult(**values | {"labels": tuple(values["labels"])})
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{path}: line {number} cannot be read") from None
        found.setdefault(result.key, result)
    return found


def write_results_table(run_folder: Path, results: Sequence[TestResult]) -> Path:
    """The results as Parquet, one row a configuration and seed; returns the file's path.

    Columns: trial_id, kind, seed, labels, then one a parameter and one a metric.
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
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: _column([row.get(name) for row in rows]) for name in names})
    path = run_folder / CONFIRM_FOLDER / TABLE_FILE
    write_atomically(table, path)
    return path


def _column(values: list[Any]) -> Any:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # choices of mixed types share a column of strings
        return pa.array([None if value is None else str(value) for value in values])
