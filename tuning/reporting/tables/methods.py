"""`methods.parquet`: the methods of a search side by side, if its trials have several.

One row per method, best first, after rows for the zero-shot model and the references:

| column | type | meaning |
|---|---|---|
| method | string | its name; also of a reference; `zero-shot` in the first row |
| kind | string | `method`, `reference` or `zero_shot` |
| trials, finished, pruned, failed | int64 | numbers of trials; null for the models above |
| trial_id, number | string, int64 | the best trial of the method, as `by_method` chooses |
| outcome, step | string, int64 | of that trial; if none finished, of the one that got furthest |
| misses | bool | whether that trial misses a constraint of the search |
| objective | double | the (first) objective of that trial, higher is better |
| seconds, all_seconds | double | wall time of that trial, and of all trials of the method |
| one per parameter, one per metric | | of that trial, as in `trials.parquet` |
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from tuning.reporting.methods_report import method_rows
from tuning.reporting.tables.arrow import (
    arrow_table,
    metric_fields,
    param_fields,
    trial_row,
    zero_shot_row,
)
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
    """One row per method, best first, after the zero-shot model and the references."""
    found = method_rows(search, records)
    references = [record for record in records if record.kind == "reference"]
    best = [row.best for row in found if row.best is not None]

    def of(record: TrialRecord) -> dict[str, object]:
        values = search.values(record)
        return {**trial_row(search, record), "objective": None if values is None else values[0]}

    rows: list[dict[str, object]] = [{**zero_shot_row(search), "method": ZERO_SHOT}]
    # Columns that describe a trial are null in the first row.
    rows[0] |= dict.fromkeys(("trial_id", "outcome", "objective"))
    rows += [{**of(reference), "method": reference.trial_id} for reference in references]
    for row in found:
        values: dict[str, object] = {
            "method": row.method,
            "kind": "method",
            "trials": len(row.trials),
            "finished": row.count("finished"),
            "pruned": row.count("pruned"),
            "failed": row.count("failed"),
            "all_seconds": row.seconds,
        }
        rows.append(
            values if row.best is None else {**of(row.best), "misses": row.misses, **values}
        )
    params = param_fields(record.params for record in best)
    fields = [*_METHOD_FIELDS, *(field for field in params if field.name != METHOD_KEY)]
    fields += metric_fields([search.zero_shot, *(r.metrics for r in (*references, *best))])
    return arrow_table(search, rows, fields)
