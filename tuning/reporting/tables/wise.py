"""Curves of WiSE-FT: accuracies of weights between the zero-shot model's and the evaluated ones.

The evaluated weights are those of the trial's other metrics: the fine-tuned ones, or what the
method makes of them, such as the average of `ema` and the point that `wise_ft` chose.

A trial with `trial.eval.wise_alphas` measures these points once, after its last step, and reports
them as `wise/<alpha>/id_val/acc` and `wise/<alpha>/ood_val/mean_acc`.

`wise.parquet`, one row per point, exists if any trial has a curve:

| column | type | meaning |
|---|---|---|
| trial_id, number, kind | string, int64, string | as in `trials.parquet` |
| method | string | method of the trial; null if the configuration does not name one |
| alpha | double | 0 is the zero-shot model, 1 the evaluated weights |
| id_acc | double | ID validation accuracy, percent |
| ood_mean_acc | double | mean over the OOD domains; null if there are none |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC
from tuning.reporting.tables.arrow import arrow_table
from tuning.runs.records import SearchRecord, TrialRecord

WISE_FILE = "wise.parquet"

_ALPHA: Final = re.compile(rf"wise/([^/]+)/{ID_ACC}")
_FIELDS: Final = (
    pa.field("trial_id", pa.string(), nullable=False),
    pa.field("number", pa.int64()),
    pa.field("kind", pa.string(), nullable=False),
    pa.field("method", pa.string()),
    pa.field("alpha", pa.float64(), nullable=False),
    pa.field("id_acc", pa.float64()),
    pa.field("ood_mean_acc", pa.float64()),
)


@dataclass(frozen=True)
class WisePoint:
    """One point of a curve; accuracies in percent, None if absent or not finite."""

    alpha: float
    id_acc: float | None
    ood_mean_acc: float | None


def wise_curve(record: TrialRecord) -> tuple[WisePoint, ...]:
    """The points that a trial reported, ordered by alpha; empty if there are none."""
    found = (match[1] for name in record.metrics if (match := _ALPHA.fullmatch(name)))
    points = (
        WisePoint(
            float(alpha),
            record.last(f"wise/{alpha}/{ID_ACC}"),
            record.last(f"wise/{alpha}/{OOD_MEAN_ACC}"),
        )
        for alpha in found
    )
    return tuple(sorted(points, key=lambda point: point.alpha))


def wise_table(search: SearchRecord, records: Sequence[TrialRecord]) -> pa.Table | None:
    """`wise.parquet`: one row per point; None if no trial has a curve."""
    rows = [
        {
            "trial_id": record.trial_id,
            "number": record.number,
            "kind": record.kind,
            "method": search.method(record),
            "alpha": point.alpha,
            "id_acc": point.id_acc,
            "ood_mean_acc": point.ood_mean_acc,
        }
        for record in sorted(records, key=lambda r: (r.number, r.trial_id))
        for point in wise_curve(record)
    ]
    return arrow_table(search, rows, _FIELDS) if rows else None
