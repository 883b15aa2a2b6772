"""Rows as Arrow tables and Parquet files, shared by all tables of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trainers.data.storage import open_store
from tuning.runs.records import ZERO_SHOT, ParamValue, SearchRecord, TrialRecord

FORMAT_VERSION = 3


def trial_row(search: SearchRecord, record: TrialRecord) -> dict[str, object]:
    """A trial as one flat row: the fixed columns of `trials.parquet`, parameters, last report."""
    first = search.objectives[0]
    return {
        "trial_id": record.trial_id,
        "number": record.number,
        "kind": record.kind,
        "outcome": record.outcome,
        "error": record.error,
        "step": record.step,
        "total_steps": search.total_steps,
        "started_at": _utc(record.started_at),
        "ended_at": _utc(record.ended_at),
        "seconds": record.seconds,
        "objective": record.metrics.get(first.metric),
        "objective_best": record.best(first.metric, first.mode),
        "is_best": False,
        "is_first_point": record.is_first_point,
        **record.params,
        **metric_cells(record.metrics),
    }


def zero_shot_row(search: SearchRecord) -> dict[str, object]:
    """The zero-shot model as a row like those of the trials."""
    objective = search.zero_shot.get(search.objectives[0].metric)
    return {
        "trial_id": ZERO_SHOT,
        "kind": "zero_shot",
        "outcome": "finished",
        "step": 0,
        "total_steps": search.total_steps,
        "objective": objective,
        "objective_best": objective,
        "is_best": False,
        **metric_cells(search.zero_shot),
    }


def _utc(unix_s: float | None) -> datetime | None:
    return None if unix_s is None else datetime.fromtimestamp(unix_s, UTC)


def metric_cells(report: Mapping[str, float]) -> dict[str, object]:
    """A report as cells of a row, without its step, which has its own column."""
    return {name: float(value) for name, value in report.items() if name != "step"}


def metric_fields(reports: Iterable[Mapping[str, float]]) -> list[pa.Field]:
    """One column per metric of any report, sorted by name."""
    names = {name for report in reports for name in report if name != "step"}
    return [pa.field(name, pa.float64()) for name in sorted(names)]


def param_fields(proposals: Iterable[Mapping[str, ParamValue]]) -> list[pa.Field]:
    """One column per parameter, in the order of the space, in the narrowest type for all values."""
    types: dict[str, set[type]] = {}
    for params in proposals:
        for key, value in params.items():
            types.setdefault(key, set()).add(type(value))

    def arrow_type(seen: set[type]) -> pa.DataType:
        if seen == {bool}:
            return pa.bool_()
        if seen == {int}:
            return pa.int64()
        return pa.float64() if seen <= {int, float} else pa.string()

    return [pa.field(key, arrow_type(seen)) for key, seen in types.items()]


def arrow_table(
    search: SearchRecord, rows: Sequence[Mapping[str, object]], fields: Sequence[pa.Field]
) -> pa.Table:
    """The rows in these columns, with the search in the metadata."""
    about = {
        "format_version": FORMAT_VERSION,
        "search": search.name,
        "objectives": [[o.metric, o.mode] for o in search.objectives],
        "constraints": [c.text for c in search.constraints],
        "id_domain": search.id_domain,
        "ood_domains": search.ood_domains,
        "sees_ood": search.sees_ood,
    }
    return plain_table(rows, fields).replace_schema_metadata({"lipsum_tune": json.dumps(about)})


def plain_table(rows: Sequence[Mapping[str, object]], fields: Sequence[pa.Field]) -> pa.Table:
    """The rows in these columns, null for a missing value."""
    columns = []
    for field in fields:
        values = [row.get(field.name) for row in rows]
        if pa.types.is_string(field.type):  # choices of mixed types share a column of strings
            values = [None if value is None else str(value) for value in values]
        columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def write_atomically(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet; a reader finds the old file or the new one, never a part of it."""
    with open_store(path.parent).write(path.name) as file:
        pq.write_table(table, file)
