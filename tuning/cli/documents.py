"""What `report --json` prints, as plain values. docs/python.md lists the keys, which only grow."""

from __future__ import annotations

import shlex
from typing import Any

from trainers.evaluation.metrics import MetricKey
from tuning.log.records import TrialRecord, zero_shot_record
from tuning.results.estimates import FT, SPLIT, Confirmation
from tuning.results.model import findings, findings_by_rule, further, made_of
from tuning.run import Run
from tuning.views.overview import state_of

Document = dict[str, Any]


def of_run(run: Run) -> Document:
    """State and trials of a run, what it has found, and what `confirm` has measured."""
    found = None
    if run.history.zero_shot is not None:
        found = run.conclusion
    again = found.confirmation if found else None
    return {
        "name": run.folder.name,
        "state": state_of(run),
        "objectives": [{"metric": o.metric, "mode": o.mode} for o in run.file.objectives],
        "zero_shot": _numbers(zero_shot_record(run.history.zero_shot or {})),
        "trials": [_trial(record) for record in run.records],
        "conclusion": found
        and {
            "best": found.best.trial_id if found.best else None,
            "lines": found.lines,
            "next": [
                shlex.split(command, comments=True)
                for command in found.commands(shlex.quote(str(run.folder)))
            ],
        },
        "confirmation": again and _confirmation(again),
        "model": again and _model(again, run),
    }


def _confirmation(found: Confirmation) -> Document:
    settings = []
    for one in found.configurations:
        keys = {name: MetricKey.parse(name) for name in found.means(one.trial_id)}
        names = [name for name, key in keys.items() if key is not None and key.split == SPLIT]
        estimates = {name: found.estimate(one.trial_id, name) for name in names}
        gaps = {name: found.against(FT, one.trial_id, name) for name in names if one.trial_id != FT}
        settings.append(
            {
                "trial_id": one.trial_id,
                "labels": one.labels,
                "metrics": {name: mean for name, mean in estimates.items() if mean},
                "against_ft": {name: gap for name, gap in gaps.items() if gap},
            }
        )
    return {
        "seeds": found.seeds,
        "readings": [reading.trials for reading in found.readings],
        "settings": settings,
        "failed": [
            {"trial_id": name, "seed": seed, "error": error}
            for (name, seed), error in found.failed.items()
        ],
    }


def _model(again: Confirmation, run: Run) -> Document | None:
    """The model that was tested last; null before that."""
    if not run.models:
        return None
    *earlier, model = run.models
    found = findings(again, model)
    return {
        "made_of": made_of(model),
        "kind": model.chosen.kind,
        "of_ends": model.chosen.of_ends,
        "line": model.chosen.line,
        "trainings": model.chosen.trainings,
        "metrics": model.test,
        "findings": [{"label": one.label, "metrics": one.values} for one in found],
        "by_rule": [
            {"label": one.label, "metrics": one.values} for one in findings_by_rule(again, model)
        ],
        "notes": model.notes,
        "further_trials": further(model, run.records),
        "earlier": [{"made_of": made_of(one), "metrics": one.test} for one in earlier],
    }


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
