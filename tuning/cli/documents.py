"""What commands print with `--json`, as plain values. docs/python.md lists the keys.

The same thing has the same name in all of them. They are one line each, and grow by keys only.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.evaluation.metrics import MetricKey
from tuning.runs.callbacks import Callback
from tuning.runs.conclusion import conclusion
from tuning.runs.confirmation import FT, SPLIT, Confirmation
from tuning.runs.records import SearchRecord, TrialRecord, zero_shot_record
from tuning.runs.run_folder import RunFolder
from tuning.views.overview import state_of

if TYPE_CHECKING:
    from tuning.config.schema import SearchFile
    from tuning.planning.cards import CardPlan
    from tuning.planning.plan import Plan
    from tuning.zero_shot.ranking import Ranked

Document = dict[str, Any]


def plain(value: Any) -> Any:
    """A value for JSON: null for a number that is not finite, text for a path, fields by name."""
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def of_plan(plan: Plan) -> Document:
    """The price of a search, and the measured durations."""
    measured = {f.name: getattr(plan, f.name) for f in fields(plan) if f.name != "file"}
    return {
        "name": plan.file.search.name,
        "trials": plan.file.most_trials,
        **measured,
        "device": plan.device,
        "prices": [*plan.prices, plan.confirm_price],
    }


def of_cards(file: SearchFile, plans: Sequence[CardPlan]) -> Document:
    """Predictions for GPUs that are not at hand; null where single images do not fit."""
    cards = [
        {
            "card": found.name,
            "peak_gb": found.step and found.step.peak_bytes / 1e9,
            "micro_batch": found.step and found.micro_batch,
            "precision": found.precision,
            "step_s": found.step_s,
            "cores": found.step and found.cores,
            "views_gb": found.views_gb,
            "gpu_hours": found.gpu_hours,
        }
        for found in plans
    ]
    trials = file.most_trials
    return {"name": file.search.name, "trials": trials, "predicted": True, "cards": cards}


def of_zero_shot(split: str, ranked: Sequence[Ranked]) -> Document:
    """Zero-shot models, best first."""
    models = [
        {
            "name": one.name,
            "acc": one.acc,
            "domains": [
                {**asdict(row), "error": row.error, "agrees": row.agrees} for row in one.rows
            ],
        }
        for one in ranked
    ]
    return {"split": split, "models": models}


def of_run(run: RunFolder) -> Document:
    """State and trials of a run, what it has found, and what `confirm` has measured."""
    found = None
    if run.history.zero_shot is not None:
        found = conclusion(run.search, run.history.records)
    again = found.confirmation if found else None
    return {
        "name": run.folder.name,
        "state": state_of(run),
        "objectives": [{"metric": o.metric, "mode": o.mode} for o in run.file.objectives],
        "zero_shot": _numbers(zero_shot_record(run.history.zero_shot or {})),
        "trials": [_trial(record) for record in run.history.records],
        "conclusion": found
        and {
            "won": found.won.trial_id if found.won else None,
            "lines": found.lines,
            "next": [
                shlex.split(command, comments=True)
                for command in found.commands(shlex.quote(str(run.folder)))
            ],
        },
        "confirmation": again and _confirmation(again),
    }


def _confirmation(found: Confirmation) -> Document:
    models = []
    for one in found.configurations:
        names = [name for name in found.means(one.trial_id) if _is_of_test(name)]
        estimates = {name: found.estimate(one.trial_id, name) for name in names}
        gaps = {name: found.against(FT, one.trial_id, name) for name in names if one.trial_id != FT}
        models.append(
            {
                "trial_id": one.trial_id,
                "labels": one.labels,
                "metrics": {name: mean for name, mean in estimates.items() if mean},
                "against_ft": {name: gap for name, gap in gaps.items() if gap},
            }
        )
    return {
        "seeds": found.seeds,
        "readings": found.readings,
        "models": models,
        "failed": [
            {"trial_id": name, "seed": seed, "error": error}
            for (name, seed), error in found.failed.items()
        ],
    }


def _is_of_test(metric: str) -> bool:
    key = MetricKey.parse(metric)
    return key is not None and key.split == SPLIT


def _trial(record: TrialRecord) -> Document:
    return {
        "trial_id": record.trial_id,
        "kind": record.kind,
        "outcome": record.outcome,
        "params": dict(record.params),
        "metrics": _numbers(record),
    }


def _numbers(record: TrialRecord) -> dict[str, float | None]:
    return {name: record.last(name) for name in record.metrics}


class Events(Callback):
    """Prints a document for each start, report and end of a trial.

    Args:
        write: takes a document.
    """

    def __init__(self, write: Callable[[Document], None]) -> None:
        self._write = write

    def search_started(self, search: SearchRecord) -> None:
        """The first document has the run folder."""
        self._write({"event": "search_started", "folder": search.run_folder})

    def trial_started(self, record: TrialRecord) -> None:
        """A trial starts or goes on."""
        self._write({"event": "trial_started", "trial": _trial(record)})

    def trial_reported(self, record: TrialRecord) -> None:
        """A trial has evaluated its model."""
        self._write({"event": "trial_reported", "trial": _trial(record)})

    def trial_ended(self, record: TrialRecord) -> None:
        """A trial has ended."""
        self._write({"event": "trial_ended", "trial": _trial(record)})
