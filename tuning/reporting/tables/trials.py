"""The tables of a search: `trials.parquet`, `curves.parquet`, `selection.parquet`, and
`methods.parquet` where its trials have several methods.

Columns carry the names of the configuration and of the reports, unchanged: parameters have dots
(`method.reg_weight`), metrics have slashes (`id_val/acc`), and neither can meet a fixed column.

`trials.parquet`, one row a trial, after a row for the zero-shot model:

| column | type | what |
|---|---|---|
| trial_id | string | `trial-007`, `ft`; `zero-shot` in the first row |
| number | int64 | order of proposal; null for zero-shot |
| kind | string | `trial`, `reference` (plain fine-tuning) or `zero_shot` |
| outcome | string | `running`, `finished`, `pruned`, `failed`, `stopped` |
| error | string | of a failed trial, else null |
| step, total_steps | int64 | optimiser steps done, steps of a whole trial |
| started_at, ended_at | timestamp, UTC | null where unknown |
| seconds | double | wall time |
| objective, objective_best | double | the (first) objective at the last step, and at its best |
| is_best | bool | the trial that `best_trial` chooses |
| one a parameter | int64, double, bool or string | null where a row has none |
| one a metric | double | the last report; null where absent, NaN where it diverged |

`curves.parquet`, one row a report (zero-shot is step 0): trial_id, number, kind, step, then
one column a metric. Wide, as a plot wants it: `df[df.kind == "trial"].plot(x="step", ...)`.

`selection.parquet`, one row a trial that a rule of `tuning.selection.rules` chose: one a rule, one
a domain for `leave_one_domain_out`, one a member for `pareto`, one a method for `by_method`; a rule
that chose none has one too:

| column | type | what |
|---|---|---|
| rule | string | its name |
| looks_at_ood | bool | whether OOD validation data had a say in the choice |
| trial_id, number | string, int64 | the trial chosen |
| method | string | what it trains with; null where the configuration does not say |
| left_out | string | the OOD domain that had no say in it; of `leave_one_domain_out` only |
| id_acc | double | ID accuracy |
| ood_acc | double | mean accuracy on the OOD domains; on `left_out` alone where there is one |
| worst_acc | double | accuracy on the worst OOD domain; on `left_out` where there is one |
| gap | double | of the rule, in each of its rows: mean OOD accuracy less that of `ood_val` |
| id_gap | double | of the rule, in each of its rows: ID accuracy less that of `id_val` |
| reason | string | why the rule chose none, else null |

The mean of `ood_acc` over the rows of a rule is the rule's own figure; not so for `pareto` and
`by_method`, whose rows are alternatives and whose gaps are null.

`methods.parquet` is described in `tuning.reporting.tables.methods`.

So is `wise.parquet`, of trials with `trial.eval.wise_alphas`, in `tuning.reporting.tables.wise`.

The schema metadata, key `lipsum_tune`, is JSON: search, objectives, constraints, domains,
sees_ood.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from tuning.reporting.tables.arrow import (
    arrow_table,
    metric_cells,
    metric_fields,
    param_fields,
    write_atomically,
)
from tuning.reporting.tables.methods import METHODS_FILE, methods_table
from tuning.reporting.tables.wise import WISE_FILE, wise_table
from tuning.runs.records import ZERO_SHOT, SearchRecord, TrialRecord
from tuning.selection.rules import best_trial, choices

TRIALS_FILE = "trials.parquet"
CURVES_FILE = "curves.parquet"
SELECTION_FILE = "selection.parquet"

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


def trials_table(search: SearchRecord, records: Sequence[TrialRecord]) -> pa.Table:
    """`trials.parquet`: one row per trial after the zero-shot model."""
    ordered = sorted(records, key=lambda r: (r.number, r.trial_id))
    rows = [zero_shot_row(search), *(trial_row(search, record) for record in ordered)]
    best = best_trial(search, records)
    for row in rows:
        row["is_best"] = best is not None and row["trial_id"] == best.trial_id
    fields = [*_TRIAL_FIELDS, *param_fields(records)]
    fields += metric_fields([search.zero_shot, *(r.metrics for r in records)])
    return arrow_table(search, rows, fields)


def curves_table(search: SearchRecord, records: Sequence[TrialRecord]) -> pa.Table:
    """One row a report, the zero-shot model at step 0; columns as the module's header says."""
    zero_shot = zero_shot_row(search)
    fixed = {field.name for field in _CURVE_FIELDS}
    rows = [{k: v for k, v in zero_shot.items() if k in fixed} | metric_cells(search.zero_shot)]
    for record in sorted(records, key=lambda r: (r.number, r.trial_id)):
        trial = {
            "trial_id": record.trial_id,
            "number": record.number,
            "kind": record.kind,
        }
        rows += [{**trial, "step": int(p.get("step", 0)), **metric_cells(p)} for p in record.curve]
    fields = [*_CURVE_FIELDS]
    fields += metric_fields([search.zero_shot, *(p for r in records for p in r.curve)])
    return arrow_table(search, rows, fields)


def selection_table(search: SearchRecord, records: Sequence[TrialRecord]) -> pa.Table:
    """One row a trial that a rule chose; columns as the module's header says."""
    rows: list[dict[str, object]] = []
    for choice in choices(search, records):
        of_rule = {
            "rule": choice.rule,
            "looks_at_ood": choice.looks_at_ood,
            "gap": choice.gap,
            "id_gap": choice.id_gap,
            "reason": choice.reason,
        }
        rows += [
            {
                **of_rule,
                "trial_id": pick.trial.trial_id,
                "number": pick.trial.number,
                "method": pick.method,
                "left_out": pick.left_out,
                "id_acc": pick.id_acc,
                "ood_acc": pick.ood_acc,
                "worst_acc": pick.worst_acc,
            }
            for pick in choice.picks
        ] or [of_rule]
    return arrow_table(search, rows, _SELECTION_FIELDS)


def write_tables(
    folder: Path, search: SearchRecord, records: Sequence[TrialRecord]
) -> tuple[Path, ...]:
    """The tables into the folder, made if need be; a reader never sees half a file.

    Returns:
        The paths of trials.parquet, curves.parquet, selection.parquet, of methods.parquet where the
        trials have several methods, and of wise.parquet where any has a curve of WiSE-FT's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        folder / TRIALS_FILE: trials_table(search, records),
        folder / CURVES_FILE: curves_table(search, records),
        folder / SELECTION_FILE: selection_table(search, records),
    }
    if len(search.methods(records)) > 1:
        tables[folder / METHODS_FILE] = methods_table(search, records)
    if (wise := wise_table(search, records)) is not None:
        tables[folder / WISE_FILE] = wise
    for path, table in tables.items():
        write_atomically(table, path)
    return tuple(tables)


def _utc(unix_s: float | None) -> datetime | None:
    return None if unix_s is None else datetime.fromtimestamp(unix_s, UTC)
