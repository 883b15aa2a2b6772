"""The Parquet tables of a search: trials, curves and selection.

Columns have the names of the configuration and of the reports: parameters have dots
(`method.reg_weight`), metrics have slashes (`id_val/acc`), so neither collides with a fixed column.

`trials.parquet`, one row per trial after a row for the zero-shot model:

| column | type | meaning |
|---|---|---|
| trial_id | string | `trial-007`, `ft`; `zero-shot` in the first row |
| number | int64 | order of proposal; null for zero-shot |
| kind | string | `trial`, `reference` (plain fine-tuning) or `zero_shot` |
| outcome | string | `running`, `finished`, `pruned`, `failed`, `stopped` |
| error | string | error of a failed trial, else null |
| step, total_steps | int64 | optimiser steps done, steps of a whole trial |
| started_at, ended_at | timestamp, UTC | null if unknown |
| seconds | double | wall time |
| objective, objective_best | double | the (first) objective at the last step, and at its best |
| is_best | bool | whether `best_trial` chooses it |
| is_first_point | bool | whether it was given and not proposed; null for zero-shot |
| one per parameter | int64, double, bool or string | null if the row has no value |
| one per metric | double | the last report; null if absent, NaN if it diverged |

`curves.parquet`, one row per report (zero-shot is step 0): trial_id, number, kind, step, then one
column per metric, for example for `df[df.kind == "trial"].plot(x="step", ...)`.

`selection.parquet`, one row per trial that a rule of `tuning.selection.rules` chose: one per rule,
per domain for `leave_one_domain_out`, per member for `pareto`, per method for `by_method`. A rule
without a choice has one row too:

| column | type | meaning |
|---|---|---|
| rule | string | its name |
| looks_at_ood | bool | whether the choice used OOD validation data |
| trial_id, number | string, int64 | the trial chosen |
| method | string | its method; null if the configuration does not name one |
| left_out | string | OOD domain that the choice did not use; `leave_one_domain_out` only |
| id_acc | double | ID accuracy |
| ood_acc | double | mean accuracy on the OOD domains; accuracy on `left_out` if set |
| worst_acc | double | accuracy on the worst OOD domain; accuracy on `left_out` if set |
| gap | double | per rule, in each of its rows: mean OOD accuracy minus that of `ood_val` |
| id_gap | double | per rule, in each of its rows: ID accuracy minus that of `id_val` |
| reason | string | why the rule chose none, else null |

The mean of `ood_acc` over the rows of a rule is the accuracy of the rule, except for `pareto` and
`by_method`, whose rows are alternatives and whose gaps are null.

The schema metadata, key `lipsum_tune`, is JSON: search, objectives, constraints, domains,
sees_ood.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from tuning.runs.ranking import best_trial
from tuning.runs.records import SearchRecord, TrialRecord
from tuning.selection.rules import choices
from tuning.views.tables.arrow import (
    arrow_table,
    metric_cells,
    metric_fields,
    param_fields,
    trial_row,
    write_atomically,
    zero_shot_row,
)

_TRIAL_FIELDS = (
    pa.field("trial_id", pa.string(), nullable=False),
    pa.field("number", pa.int64()),
    pa.field("kind", pa.string(), nullable=False),
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
    pa.field("is_first_point", pa.bool_()),
)
_CURVE_FIELDS = (
    pa.field("trial_id", pa.string(), nullable=False),
    pa.field("number", pa.int64()),
    pa.field("kind", pa.string(), nullable=False),
    pa.field("step", pa.int64(), nullable=False),
)
_SELECTION_FIELDS = (
    pa.field("rule", pa.string(), nullable=False),
    pa.field("looks_at_ood", pa.bool_(), nullable=False),
    pa.field("trial_id", pa.string()),
    pa.field("number", pa.int64()),
    pa.field("method", pa.string()),
    pa.field("left_out", pa.string()),
    pa.field("id_acc", pa.float64()),
    pa.field("ood_acc", pa.float64()),
    pa.field("worst_acc", pa.float64()),
    pa.field("gap", pa.float64()),
    pa.field("id_gap", pa.float64()),
    pa.field("reason", pa.string()),
)


def trials_table(search: SearchRecord, records: Sequence[TrialRecord]) -> pa.Table:
    """`trials.parquet`: one row per trial after the zero-shot model."""
    ordered = sorted(records, key=lambda r: (r.number, r.trial_id))
    rows = [zero_shot_row(search), *(trial_row(search, record) for record in ordered)]
    best = best_trial(search, records)
    for row in rows:
        row["is_best"] = best is not None and row["trial_id"] == best.trial_id
    fields = [*_TRIAL_FIELDS, *param_fields(record.params for record in records)]
    fields += metric_fields([search.zero_shot, *(r.metrics for r in records)])
    return arrow_table(search, rows, fields)


def curves_table(search: SearchRecord, records: Sequence[TrialRecord]) -> pa.Table:
    """`curves.parquet`: one row per report after the zero-shot model at step 0."""
    rows = [zero_shot_row(search)]
    for record in sorted(records, key=lambda r: (r.number, r.trial_id)):
        trial = {"trial_id": record.trial_id, "number": record.number, "kind": record.kind}
        rows += [{**trial, "step": int(p.get("step", 0)), **metric_cells(p)} for p in record.curve]
    fields = [*_CURVE_FIELDS]
    fields += metric_fields([search.zero_shot, *(p for r in records for p in r.curve)])
    return arrow_table(search, rows, fields)


def selection_table(search: SearchRecord, records: Sequence[TrialRecord]) -> pa.Table:
    """`selection.parquet`: one row per trial that a rule chose, or one for a rule without."""
    rows: list[dict[str, object]] = []
    for choice in choices(search, records):
        rule = {
            "rule": choice.rule,
            "looks_at_ood": choice.looks_at_ood,
            "gap": choice.gap,
            "id_gap": choice.id_gap,
            "reason": choice.reason,
        }
        for pick in choice.picks:
            chosen = {"trial_id": pick.trial.trial_id, "number": pick.trial.number}
            names = ("method", "left_out", "id_acc", "ood_acc", "worst_acc")
            rows.append({**rule, **chosen, **{name: getattr(pick, name) for name in names}})
        if not choice.picks:
            rows.append(rule)
    return arrow_table(search, rows, _SELECTION_FIELDS)


def write_tables(
    folder: Path, search: SearchRecord, records: Sequence[TrialRecord]
) -> tuple[Path, ...]:
    """Write the tables into the folder, which is made if needed; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        folder / "trials.parquet": trials_table(search, records),
        folder / "curves.parquet": curves_table(search, records),
        folder / "selection.parquet": selection_table(search, records),
    }
    for path, table in tables.items():
        write_atomically(table, path)
    return tuple(tables)
