"""Rows of a search as Arrow tables, and onto disk: what the tables of a run have in common."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tuning.runs.records import SearchRecord, TrialRecord

FORMAT_VERSION = 3


def metric_cells(report: Mapping[str, float]) -> dict[str, object]:
    """A report as cells of a row: all but its step, which has a column of its own."""
    return {name: float(value) for name, value in report.items() if name != "step"}


def metric_fields(reports: Iterable[Mapping[str, float]]) -> list[pa.Field]:
    """One column a metric that any of the reports has, by name."""
    names = {name for report in reports for name in report if name != "step"}
    return [pa.field(name, pa.float64()) for name in sorted(names)]


def param_fields(records: Sequence[TrialRecord]) -> list[pa.Field]:
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


def arrow_table(
    search: SearchRecord, rows: Sequence[Mapping[str, object]], fields: Sequence[pa.Field]
) -> pa.Table:
    """The rows in these columns, null where a row has none; the search's own data beside them."""
    about = {
        "format_version": FORMAT_VERSION,
        "search": search.name,
        "objectives": [[o.metric, o.mode] for o in search.objectives],
        "constraints": [c.text for c in search.constraints],
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


def write_atomically(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet; a reader finds the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
