"""The tables of a run as Parquet and CSV files: trials and curves.

Columns have the names of the configuration and of the reports: parameters have dots
(`method.reg_weight`), metrics have slashes (`id_val/acc`), so neither collides with a fixed column.

`trials.parquet` and `.csv`, one row per trial after a row for the zero-shot model: the columns of
`_TYPES`, then one per parameter (null if the row has no value), and one per metric of the last
report (null if absent, NaN if it diverged).

`curves.parquet` and `.csv`, one row per report (zero-shot is step 0): trial_id, number, kind, step,
then one column per metric, for example for `df[df.kind == "trial"].plot(x="step", ...)`.

`confirm/results.parquet` and `.csv`, one row per training of `confirm`: trial_id, kind, step,
labels, then one column per parameter, `seed` among them, and one per metric.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from trainers.data.store import open_store
from tuning.log.records import STEP, ZERO_SHOT, TrialRecord, zero_shot_record
from tuning.results.estimates import FT, Key
from tuning.run import Run

_TYPES = {
    "trial_id": pa.string(),
    "number": pa.int64(),  # order of proposal; null for zero-shot
    "kind": pa.string(),  # `trial`, `reference` (plain fine-tuning) or `zero_shot`
    "outcome": pa.string(),  # `running`, `finished`, `pruned`, `failed`, `stopped`
    "error": pa.string(),  # of a failed trial with its traceback, else null
    "reason": pa.string(),  # why it was pruned, or the budget that stopped it, else null
    STEP: pa.int64(),  # optimiser steps done
    "total_steps": pa.int64(),  # of a whole trial
    "started_at": pa.timestamp("ms", "UTC"),  # null if unknown
    "ended_at": pa.timestamp("ms", "UTC"),
    "seconds": pa.float64(),  # wall time
    "objective": pa.float64(),  # the (first) one at the last step
    "objective_best": pa.float64(),  # and at its best
    "is_best": pa.bool_(),  # whether the conclusion names it
    "is_first_point": pa.bool_(),  # whether it was given and not proposed; null for zero-shot
}
"""Of the fixed columns of `trials.parquet`, in their order."""


def trials_table(run: Run) -> pa.Table:
    """`trials.parquet`: one row per trial after the zero-shot model."""
    first, best = run.goal.objectives[0], run.conclusion.best
    rows = []
    for record in [zero_shot_record(run.goal.zero_shot), *_ordered(run.records)]:
        is_model = record.trial_id == ZERO_SHOT
        row: dict[str, Any] = {
            "trial_id": record.trial_id,
            "number": None if is_model else record.number,
            "kind": "zero_shot" if is_model else record.kind,
            "outcome": record.outcome,
            "error": record.error,
            "reason": record.reason or None,
            "total_steps": run.file.trial.steps,
            "started_at": _utc(record.started_at),
            "ended_at": _utc(record.ended_at),
            "seconds": record.seconds,
            "objective": record.metrics.get(first.metric),
            "objective_best": record.best(first.metric, first.mode),
            "is_best": best is not None and record.trial_id == best.trial_id,
            "is_first_point": None if is_model else record.is_first_point,
        }
        rows.append({**row, **record.params, **record.metrics, STEP: record.step})
    params = dict.fromkeys(key for record in run.records for key in record.params)
    return _table(rows, _TYPES, params)


def curves_table(run: Run) -> pa.Table:
    """`curves.parquet`: one row per report after the zero-shot model at step 0."""
    rows = [{"trial_id": ZERO_SHOT, "kind": "zero_shot", **run.goal.zero_shot, STEP: 0}]
    for record in _ordered(run.records):
        trial = {"trial_id": record.trial_id, "number": record.number, "kind": record.kind}
        rows += [{STEP: 0, **trial, **report} for report in record.curve]
    return _table(rows, ("trial_id", "number", "kind", STEP))


def results_table(results: Mapping[Key, TrialRecord]) -> pa.Table:
    """`confirm/results.parquet`: one row per configuration and seed."""
    rows = []
    params = dict.fromkeys(key for record in results.values() for key in record.params)
    for (trial_id, _), record in results.items():
        kind = {ZERO_SHOT: "zero_shot", FT: "reference"}.get(trial_id, "trial")
        about = {"trial_id": trial_id, "kind": kind, "labels": ", ".join(record.labels)}
        rows.append({**about, **record.params, **record.metrics})
    return _table(rows, ("trial_id", "kind", STEP), ["labels", *params])


def write_tables(folder: Path, run: Run) -> None:
    """Write both tables as Parquet and CSV into the folder, which is made.

    A reader finds the old file or the new one, never a part of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder, "trials", trials_table(run))
    write_table(folder, "curves", curves_table(run))


def write_table(folder: Path, name: str, table: pa.Table) -> None:
    """Write a table as Parquet and CSV."""
    for suffix, write in ((".parquet", pq.write_table), (".csv", pyarrow.csv.write_csv)):
        content = io.BytesIO()
        write(table, content)
        with open_store(folder).write(name + suffix) as file:
            file.write(content.getbuffer())


def _ordered(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    return sorted(records, key=lambda record: (record.number, record.trial_id))


def _utc(unix_s: float | None) -> datetime | None:
    return None if unix_s is None else datetime.fromtimestamp(unix_s, UTC)


def _table(
    rows: Sequence[dict[str, Any]], fixed: Iterable[str], params: Iterable[str] = ()
) -> pa.Table:
    """The rows in fixed columns, then parameters, then metrics; null for a missing value."""
    columns = {name: _TYPES[name] for name in fixed}
    for name in params:
        try:
            kind = pa.array([row.get(name) for row in rows]).type
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # choices of mixed types
            kind = pa.string()
            for row in rows:
                if name in row:
                    row[name] = str(row[name])
        columns[name] = kind
    metrics = {name for row in rows for name in row} - columns.keys()
    columns |= dict.fromkeys(sorted(metrics), pa.float64())
    return pa.Table.from_pylist(rows, pa.schema(columns))
