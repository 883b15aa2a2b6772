"""`methods.parquet`: the methods of a search side by side, where its trials have several.

One row a method, best first, after rows for the zero-shot model and the references:

| column | type | what |
|---|---|---|
| method | string | its name; of a reference too, `zero-shot` in the first row |
| kind | string | `method`, `reference` or `zero_shot` |
| trials, finished, pruned, failed | int64 | how many it had, and what became of them; else null |
| trial_id, number | string, int64 | its best trial, as `by_method` chooses |
| outcome, step | string, int64 | of that; where none finished, of the one that got furthest |
| misses | bool | whether that misses a constraint of the search |
| objective | double | the (first) objective of that trial, higher is better |
| seconds, all_seconds | double | wall time of that, and of all trials of the method |
| one a parameter, one a metric | | of that, as in `trials.parquet` |
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from tuning.reporting.methods_report import MethodRow, method_rows
from tuning.reporting.tables.arrow import arrow_table, metric_cells, metric_fields, param_fields
from tuning.runs.records import METHOD_KEY, ZERO_SHOT, SearchRecord, TrialRecord

METHODS_FILE = "methods.parquet"
_METHOD_FIELDS = (
    pa.field("method", pa.string(), nullable=False),
    pa.field("kind", pa.string(), nullable=False),
    *(pa.field(name, pa.int64()) for name in ("trials", "finished", "pruned", "failed")),
    pa.field("trial_id", pa.string()),
    pa.field("number", pa.int64()),
    pa.field("outcome", pa.string()),
    pa.field("step", pa.int64()),
    pa.field("misses", pa.bool_()),
    pa.field("objective", pa.float64()),
    pa.field("seconds", pa.float64()),
    pa.field("all_seconds", pa.float64()),
)


def methods_table(search: SearchRecord, records: Sequence[TrialRecord]) -> pa.Table:
    """One row a method, best first, under the models to compare with; columns as the header says.

    None but these where the trials do not have several methods.
    """
    found = method_rows(search, records)
    references = [record for record in records if record.kind == "reference"]
    best = [row.best for row in found if row.best is not None]
    rows: list[dict[str, object]] = [
        {"method": ZERO_SHOT, "kind": "zero_shot", "step": 0, **metric_cells(search.zero_shot)}
    ]
    for reference in references:
        rows.append({"method": reference.trial_id, "kind": "reference", **_of(search, reference)})
    rows += [_method_row(search, row) for row in found]
    fields = [*_METHOD_FIELDS, *(f for f in param_fields(best) if f.name != METHOD_KEY)]
    fields += metric_fields([search.zero_shot, *(r.metrics for r in (*references, *best))])
    return arrow_table(search, rows, fields)


def _method_row(search: SearchRecord, row: MethodRow) -> dict[str, object]:
    about: dict[str, object] = {
        "method": row.method,
        "kind": "method",
        "trials": len(row.trials),
        "finished": row.count("finished"),
        "pruned": row.count("pruned"),
        "failed": row.count("failed"),
        "all_seconds": row.seconds,
    }
    return about if row.best is None else {**about, "misses": row.misses, **_of(search, row.best)}


def _of(search: SearchRecord, record: TrialRecord) -> dict[str, object]:
    values = search.values(record)
    return {
        "trial_id": record.trial_id,
        "number": record.number,
        "outcome": record.outcome,
        "step": record.step,
        "objective": None if values is None else values[0],
        "seconds": record.seconds,
        **record.params,
        **metric_cells(record.metrics),
    }
