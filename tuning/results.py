"""The tables of a search, `trials.parquet` and `curves.parquet`, and which trial is the best.

Columns carry the names of the configuration and of the reports, unchanged: parameters have dots
(`method.reg_weight`), metrics have slashes (`id_val/acc`), and neither can meet a fixed column.

`trials.parquet`, one row a trial, after a row for the zero-shot model:

| column | type | what |
|---|---|---|
| trial_id | string | `zero-shot` in the first row |
| number | int64 | order of proposal; null for zero-shot |
| kind | string | `trial`, `reference` (plain fine-tuning) or `zero_shot` |
| name | string | for people |
| outcome | string | `running`, `finished`, `pruned`, `failed`, `stopped` |
| error | string | of a failed trial, else null |
| step, total_steps | int64 | optimiser steps done, steps of a whole trial |
| started_at, ended_at | timestamp, UTC | null where unknown |
| seconds | double | wall time |
| objective, objective_best | double | the objective at the last step, and at its best |
| is_best | bool | the trial that `best_trial` chooses |
| one a parameter | int64, double, bool or string | null where a row has none |
| one a metric | double | the last report; null where absent, NaN where it diverged |

`curves.parquet`, one row a report (zero-shot is step 0): trial_id, number, kind, name, step, then
one column a metric. Wide, as a plot wants it: `df[df.kind == "trial"].plot(x="step", ...)`.

The schema metadata, key `lipsum_tune`, is JSON: search, objective, mode, domains, sees_ood.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tuning.records import SearchOutcome, SearchRecord, TrialRecord

ZERO_SHOT = "zero-shot"
TRIALS_FILE = "trials.parquet"
CURVES_FILE = "curves.parquet"
FORMAT_VERSION = 1

_TRIAL_FIELDS = (
    pa.field("trial_id", pa.string(), nullable=False),
    pa.field("number", pa.int64()),
    pa.field("kind", pa.string(), nullable=False),
    pa.field("name", pa.string(), nullable=False),
    pa.field("outcome", pa.string(), nullable=False),
    pa.field("error", pa.string()),
    pa.field("step", pa.int64(), nullable=False),
    pa.field("total_steps", pa.int64(), nullable=False),
    pa.field("started_at", pa.timestamp("ms", "UTC")),
    pa.field("ended_at", pa.timestamp("ms", "UTC")),
    pa.field("seconds", pa.float64()),
    pa.field("objective", pa.float64()),
    pa.field("objective_best", pa.float64()),
    pa.field("is_best", pa.bool_(), nullable=False),
)
_CURVE_FIELDS = (
    pa.field("trial_id", pa.string(), nullable=False),
    pa.field("number", pa.int64()),
    pa.field("kind", pa.string(), nullable=False),
    pa.field("name", pa.string(), nullable=False),
    pa.field("step", pa.int64(), nullable=False),
)


def best_trial(search: SearchRecord, records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The trial with the best objective at its last step, the earlier one of equals.

    The last step and not the best one along the curve: the best of many noisy evaluations is
    optimistic, and more so for trials that evaluate more often. Only finished trials are compared.
    Where none finished, it is the best of those that got furthest, since values at different steps
    do not compare. References, failed trials and objectives that are not finite never win.
    """
    candidates = [r for r in records if r.kind == "trial" and _score(search, r) > -math.inf]
    finished = [r for r in candidates if r.outcome == "finished"]
    if not finished:
        alive = [r for r in candidates if r.outcome != "failed"]
        furthest = max((r.step for r in alive), default=0)
        finished = [r for r in alive if r.step == furthest]
    return max(finished, key=lambda r: (_score(search, r), -r.number), default=None)


def ranked(search: SearchRecord, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """All trials, no references, best first: finished, then cut short by step, then failed."""

    def key(record: TrialRecord) -> tuple[int, int, float, int]:
        group = {"finished": 0, "failed": 2}.get(record.outcome, 1)
        return (
            group,
            -record.step if group else 0,
            -_score(search, record),
            record.number,
        )

    return sorted((r for r in records if r.kind == "trial"), key=key)


def trials_table(search: SearchRecord, records: Sequence[TrialRecord]) -> pa.Table:
    """One row a trial, the zero-shot model first; columns as the module's header says."""
    best = best_trial(search, records)
    rows = [_zero_shot_row(search)]
    for record in sorted(records, key=lambda r: (r.number, r.trial_id)):
        rows.append(
            {
                "trial_id": record.trial_id,
                "number": record.number,
                "kind": record.kind,
                "name": record.name,
                "outcome": record.outcome,
                "error": record.error,
                "step": record.step,
                "total_steps": search.total_steps,
                "started_at": _utc(record.started_at),
                "ended_at": _utc(record.ended_at),
                "seconds": record.seconds,
                "objective": record.metrics.get(search.objective_metric),
                "objective_best": record.best(search.objective_metric, search.objective_mode),
                "is_best": best is not None and record.trial_id == best.trial_id,
                **record.params,
                **_metrics(record.metrics),
            }
        )
    fields = [*_TRIAL_FIELDS, *_param_fields(records)]
    fields += _metric_fields([search.zero_shot, *(r.metrics for r in records)])
    return _table(search, rows, fields)


def curves_table(search: SearchRecord, records: Sequence[TrialRecord]) -> pa.Table:
    """One row a report, the zero-shot model at step 0; columns as the module's header says."""
    zero_shot = _zero_shot_row(search)
    fixed = {field.name for field in _CURVE_FIELDS}
    rows = [{k: v for k, v in zero_shot.items() if k in fixed} | _metrics(search.zero_shot)]
    for record in sorted(records, key=lambda r: (r.number, r.trial_id)):
        trial = {
            "trial_id": record.trial_id,
            "number": record.number,
            "kind": record.kind,
            "name": record.name,
        }
        rows += [{**trial, "step": int(p.get("step", 0)), **_metrics(p)} for p in record.curve]
    fields = [*_CURVE_FIELDS]
    fields += _metric_fields([search.zero_shot, *(p for r in records for p in r.curve)])
    return _table(search, rows, fields)


def write_tables(
    folder: Path, search: SearchRecord, records: Sequence[TrialRecord]
) -> tuple[Path, Path]:
    """Both tables into the folder, made if need be; a reader never sees half a file.

    Returns:
        The paths of trials.parquet and curves.parquet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trials, curves = folder / TRIALS_FILE, folder / CURVES_FILE
    _write_atomically(trials_table(search, records), trials)
    _write_atomically(curves_table(search, records), curves)
    return trials, curves


class TablesListener:
    """Keeps both tables of the run folder up to date: rewritten at every trial's end.

    After a resume, give the trials of earlier sessions as `earlier`, unless their events come
    again: what the listener has not heard of is not in the tables until the search ends.
    """

    def __init__(self, run_folder: Path, earlier: Iterable[TrialRecord] = ()) -> None:
        self._folder = run_folder
        self._search: SearchRecord | None = None
        self._records = {record.trial_id: record for record in earlier}

    def search_started(self, search: SearchRecord) -> None:
        """Remembers the search; nothing is written yet, so a resume keeps the tables it finds."""
        self._search = search

    def trial_started(self, record: TrialRecord) -> None:
        """Takes note of the trial."""
        self._records[record.trial_id] = record

    def trial_reported(self, record: TrialRecord) -> None:
        """Takes note of the report."""
        self._records[record.trial_id] = record

    def trial_ended(self, record: TrialRecord) -> None:
        """Writes the tables, running trials included."""
        self._records[record.trial_id] = record
        self._write()

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """Writes the tables from the search's own list of records."""
        self._records = {record.trial_id: record for record in records}
        self._write()

    def _write(self) -> None:
        if self._search is not None:
            write_tables(self._folder, self._search, list(self._records.values()))


def _score(search: SearchRecord, record: TrialRecord) -> float:
    """Higher is better; -inf where the trial has no finite objective."""
    value = record.last(search.objective_metric)
    if value is None:
        return -math.inf
    return value if search.objective_mode == "max" else -value


def _zero_shot_row(search: SearchRecord) -> dict[str, object]:
    objective = search.zero_shot.get(search.objective_metric)
    return {
        "trial_id": ZERO_SHOT,
        "kind": "zero_shot",
        "name": ZERO_SHOT,
        "outcome": "finished",
        "step": 0,
        "total_steps": search.total_steps,
        "objective": objective,
        "objective_best": objective,
        "is_best": False,
        **_metrics(search.zero_shot),
    }


def _metrics(report: Mapping[str, float]) -> dict[str, object]:
    return {name: float(value) for name, value in report.items() if name != "step"}


def _metric_fields(reports: Iterable[Mapping[str, float]]) -> list[pa.Field]:
    names = {name for report in reports for name in report if name != "step"}
    return [pa.field(name, pa.float64()) for name in sorted(names)]


def _param_fields(records: Sequence[TrialRecord]) -> list[pa.Field]:
    """One column a parameter, in the order of the space, in the narrowest type that holds all."""
    types: dict[str, set[type]] = {}
    for record in records:
        for key, value in record.params.items():
            types.setdefault(key, set()).add(type(value))
    return [pa.field(key, _arrow_type(seen)) for key, seen in types.items()]


def _arrow_type(seen: set[type]) -> pa.DataType:
    if seen == {bool}:
        return pa.bool_()
    if seen == {int}:
        return pa.int64()
    if seen <= {int, float}:
        return pa.float64()
    return pa.string()


def _table(search: SearchRecord, rows: list[dict[str, object]], fields: list[pa.Field]) -> pa.Table:
    about = {
        "format_version": FORMAT_VERSION,
        "search": search.name,
        "objective_metric": search.objective_metric,
        "objective_mode": search.objective_mode,
        "id_domain": search.id_domain,
        "ood_domains": search.ood_domains,
        "sees_ood": search.sees_ood,
    }
    columns = [
        pa.array([_cell(row.get(field.name), field.type) for row in rows], field.type)
        for field in fields
    ]
    schema = pa.schema(fields, metadata={"lipsum_tune": json.dumps(about)})
    return pa.Table.from_arrays(columns, schema=schema)


def _cell(value: object, arrow_type: pa.DataType) -> object:
    # Choices of mixed types share a column of strings.
    return str(value) if value is not None and pa.types.is_string(arrow_type) else value


def _utc(unix_s: float | None) -> datetime | None:
    return None if unix_s is None else datetime.fromtimestamp(unix_s, UTC)


def _write_atomically(table: pa.Table, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
