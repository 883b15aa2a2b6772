"""The tables of a run as Parquet and CSV files: trials and curves.

Columns have the names of the configuration and of the reports: parameters have dots
(`method.reg_weight`), metrics have slashes (`id_val/acc`), so neither collides with a fixed column.

`trials.parquet` and `.csv`, one row per trial after a row for the zero-shot model:

| column | type | meaning |
|---|---|---|
| trial_id | string | `trial-007`, `ft`; `zero-shot` in the first row |
| number | int64 | order of proposal; null for zero-shot |
| kind | string | `trial`, `reference` (plain fine-tuning), `repeat` (another seed) or `zero_shot` |
| outcome | string | `running`, `finished`, `pruned`, `failed`, `stopped` |
| error | string | error of a failed trial, else null |
| step, total_steps | int64 | optimiser steps done, steps of a whole trial |
| started_at, ended_at | timestamp, UTC | null if unknown |
| seconds | double | wall time |
| objective, objective_best | double | the (first) objective at the last step, and at its best |
| seeds, margin | int64, double | seeds whose mean is `objective`, and half its 95 % interval |
| repeats | string | of a repeat, its trial |
| is_best | bool | whether `best_trial` chooses it |
| is_first_point | bool | whether it was given and not proposed; null for zero-shot |
| one per parameter | int64, double, bool or string | null if the row has no value |
| one per metric | double | the last report; null if absent, NaN if it diverged |

`curves.parquet` and `.csv`, one row per report (zero-shot is step 0): trial_id, number, kind, step,
then one column per metric, for example for `df[df.kind == "trial"].plot(x="step", ...)`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from trainers.data.storage import open_store
from tuning.runs.ranking import best_trial
from tuning.runs.records import STEP, ZERO_SHOT, SearchRecord, TrialRecord, zero_shot_record
from tuning.runs.seeds import margin_of_mean

_CURVE_FIELDS = (
    pa.field("trial_id", pa.string(), nullable=False),
    pa.field("number", pa.int64()),
    pa.field("kind", pa.string(), nullable=False),
    pa.field("step", pa.int64(), nullable=False),
)
_TRIAL_FIELDS = (
    *_CURVE_FIELDS[:3],
    pa.field("outcome", pa.string(), nullable=False),
    pa.field("error", pa.string()),
    _CURVE_FIELDS[3],
    pa.field("total_steps", pa.int64(), nullable=False),
    pa.field("started_at", pa.timestamp("ms", "UTC")),
    pa.field("ended_at", pa.timestamp("ms", "UTC")),
    pa.field("seconds", pa.float64()),
    pa.field("objective", pa.float64()),
    pa.field("objective_best", pa.float64()),
    pa.field("seeds", pa.int64(), nullable=False),
    pa.field("margin", pa.float64()),
    pa.field("repeats", pa.string()),
    pa.field("is_best", pa.bool_(), nullable=False),
    pa.field("is_first_point", pa.bool_()),
)


def trials_table(search: SearchRecord, records: Sequence[TrialRecord]) -> pa.Table:
    """`trials.parquet`: one row per trial after the zero-shot model."""
    first, best = search.objectives[0], best_trial(search, records)
    rows = []
    for record in [zero_shot_record(search.zero_shot), *_ordered(records)]:
        is_model = record.trial_id == ZERO_SHOT
        row: dict[str, object] = {
            "trial_id": record.trial_id,
            "number": None if is_model else record.number,
            "kind": "zero_shot" if is_model else record.kind,
            "outcome": record.outcome,
            "error": record.error,
            "step": record.step,
            "total_steps": search.total_steps,
            "started_at": _utc(record.started_at),
            "ended_at": _utc(record.ended_at),
            "seconds": record.seconds,
            "objective": record.means.get(first.metric),
            "objective_best": record.best(first.metric, first.mode),
            "seeds": 1 + len(record.repetitions),
            "margin": margin_of_mean(search, records, record),
            "repeats": record.repeats or None,
            "is_best": best is not None and record.trial_id == best.trial_id,
            "is_first_point": None if is_model else record.is_first_point,
        }
        rows.append({**row, **record.params, **_metrics(record.metrics)})
    params = dict.fromkeys(key for record in records for key in record.params)
    reports = [search.zero_shot, *(record.metrics for record in records)]
    return _table(search, rows, _TRIAL_FIELDS, params, reports)


def curves_table(search: SearchRecord, records: Sequence[TrialRecord]) -> pa.Table:
    """`curves.parquet`: one row per report after the zero-shot model at step 0."""
    rows: list[dict[str, object]] = [
        {"trial_id": ZERO_SHOT, "kind": "zero_shot", "step": 0, **_metrics(search.zero_shot)}
    ]
    for record in _ordered(records):
        trial = {"trial_id": record.trial_id, "number": record.number, "kind": record.kind}
        rows += [{**trial, "step": int(p.get(STEP, 0)), **_metrics(p)} for p in record.curve]
    reports = [search.zero_shot, *(point for record in records for point in record.curve)]
    return _table(search, rows, _CURVE_FIELDS, (), reports)


def write_tables(
    folder: Path, search: SearchRecord, records: Sequence[TrialRecord]
) -> tuple[Path, ...]:
    """Write both tables as Parquet and CSV into the folder, which is made; returns their paths.

    A reader finds the old file or the new one, never a part of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    tables = {"trials": trials_table(search, records), "curves": curves_table(search, records)}
    for name, table in tables.items():
        for suffix, write in ((".parquet", pq.write_table), (".csv", pyarrow.csv.write_csv)):
            content = io.BytesIO()
            write(table, content)
            with open_store(folder).write(name + suffix) as file:
                file.write(content.getbuffer())
            paths.append(folder / (name + suffix))
    return tuple(paths)


def _ordered(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    return sorted(records, key=lambda record: (record.number, record.trial_id))


def _utc(unix_s: float | None) -> datetime | None:
    return None if unix_s is None else datetime.fromtimestamp(unix_s, UTC)


def _metrics(report: Mapping[str, float]) -> dict[str, float]:
    """A report as cells of a row, without its step, which has its own column."""
    return {name: float(value) for name, value in report.items() if name != STEP}


def _table(
    search: SearchRecord,
    rows: Sequence[Mapping[str, object]],
    fields: Sequence[pa.Field],
    params: Iterable[str],
    reports: Iterable[Mapping[str, float]],
) -> pa.Table:
    """The rows in these columns, null for a missing value, with the search in the metadata."""
    names = sorted({name for report in reports for name in report if name != STEP})
    columns = {name: pa.array([row.get(name) for row in rows], pa.float64()) for name in names}
    for name in params:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # choices of mixed types
            columns[name] = pa.array([None if value is None else str(value) for value in values])
    every = [*fields, *(pa.field(name, columns[name].type) for name in (*params, *names))]
    fixed = [pa.array([row.get(field.name) for row in rows], field.type) for field in fields]
    arrays = [*fixed, *(columns[field.name] for field in every[len(fixed) :])]
    about = {
        "search": search.name,
        "objectives": [[o.metric, o.mode] for o in search.objectives],
        "constraints": [c.text for c in search.constraints],
        "id_domain": search.id_domain,
        "ood_domains": search.ood_domains,
        "sees_ood": search.sees_ood,
    }
    table = pa.Table.from_arrays(arrays, schema=pa.schema(every))
    return table.replace_schema_metadata({"lipsum_tune": json.dumps(about)})
