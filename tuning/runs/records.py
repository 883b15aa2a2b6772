"""What the rest of the project knows of a search and its trials: plain, frozen records.

Whoever runs trials turns its own events into these records and gives them to callbacks. No callback
needs to know how a trial runs, so tables, MLflow, reports and the display can be tested with
records written by hand, and made again from records read back from a table.

States of a trial: `running` -> one of `finished` (all its steps), `pruned` (the scheduler stopped
it), `failed` (it raised), `stopped` (the search was interrupted, or a budget ended it). A resume
takes the stopped ones up again; the others are final.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias

from tuning.algorithms.objectives import Constraint, Mode, Objective

Outcome: TypeAlias = Literal["running", "finished", "pruned", "failed", "stopped"]
Kind: TypeAlias = Literal["trial", "reference"]
"""A reference is plain fine-tuning beside the search, to compare with; no sampler proposed it."""
SearchOutcome: TypeAlias = Literal["finished", "failed", "stopped"]
ParamValue: TypeAlias = bool | int | float | str

TRIAL_KEY: Final = "trial_id"
"""In the configuration of a Tune trial: our name for it. Tune's own differs after a resume."""
REFERENCE_KEY: Final = "reference"
"""In the configuration of a Tune trial: the name of the reference that it is."""
METHOD_KEY: Final = "method.name"
"""Among the params of a trial: its method, where a search compares several."""
ZERO_SHOT: Final = "zero-shot"
"""In tables and displays: the model before any step, among the trials."""
STEP: Final = "step"
"""In a report: optimiser steps done. Tune's own iteration starts anew after a resume."""

# The names that reports, MLflow and the tables share. Accuracies are percentages, 0 to 100.
ID_ACC = "id_val/acc"
OOD_MEAN_ACC = "ood_val/mean_acc"
MEAN_ACC = "val/mean_acc"
"""The mean of ID_ACC and OOD_MEAN_ACC."""
TRAIN_LOSS = "train/loss"
SECONDS = "cost/seconds"


def trial_name(number: int) -> str:
    """The name of the trial of that number, counted from 0: `trial-007`."""
    return f"trial-{number:03d}"


def trial_number(trial_id: str) -> int:
    """The number in `trial-007`; -1 for a reference."""
    name, _, number = trial_id.rpartition("-")
    return int(number) if name == "trial" else -1


def domain_acc(domain: str) -> str:
    """The name of the validation accuracy on one out-of-distribution domain."""
    return f"ood_val/{domain}/acc"


@dataclass(frozen=True)
class TrialRecord:
    """One trial as it stands; a new record replaces the old one at every event."""

    trial_id: str
    """`trial-007`, or `ft` for the reference: the same through every resume."""
    number: int
    """Order of proposal; -1 for a reference."""
    kind: Kind
    params: Mapping[str, ParamValue]
    """Dotted key -> value, what the sampler proposed."""
    outcome: Outcome = "running"
    error: str | None = None
    """What a failed trial raised; its first line says what, the rest where."""
    curve: tuple[Mapping[str, float], ...] = ()
    """Every report in order, each flat, with "step" among its keys."""
    started_at: float | None = None
    """Unix time in seconds; of the last attempt, where a trial was taken up again."""
    ended_at: float | None = None
    gpus: float = 0.0
    """Reserved while it runs; of the last attempt."""
    earlier_seconds: float = 0.0
    """Wall time of the attempts before the last."""
    earlier_gpu_seconds: float = 0.0
    """GPUs times seconds, of the attempts before the last."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """The last report; empty before the first."""
        return self.curve[-1] if self.curve else {}

    @property
    def step(self) -> int:
        """Optimiser steps at the last report, 0 before it."""
        return int(self.metrics.get("step", 0))

    @property
    def seconds(self) -> float | None:
        """Wall time of all attempts; while it runs, what its last report says."""
        if self.started_at is not None and self.ended_at is not None:
            return self.earlier_seconds + self.ended_at - self.started_at
        return self.metrics.get(SECONDS)

    def gpu_seconds(self, now: float) -> float:
        """GPUs reserved times seconds, over all attempts, until its end or until now."""
        if self.started_at is None:
            return self.earlier_gpu_seconds
        ended = now if self.ended_at is None else self.ended_at
        return self.earlier_gpu_seconds + self.gpus * (ended - self.started_at)

    @property
    def compact(self) -> TrialRecord:
        """The record with its last report alone."""
        return replace(self, curve=self.curve[-1:])

    def last(self, metric: str) -> float | None:
        """The metric in the last report; None where it is absent or not finite."""
        return _finite(self.metrics.get(metric))

    def best(self, metric: str, mode: Mode) -> float | None:
        """The best finite value along the curve; None where there is none."""
        values = [v for point in self.curve if (v := _finite(point.get(metric))) is not None]
        if not values:
            return None
        return max(values) if mode == "max" else min(values)

    @property
    def error_line(self) -> str:
        """The error in one line: the last line of a traceback, else the first that says a thing."""
        lines = [line.strip() for line in (self.error or "").splitlines() if line.strip()]
        if not lines:
            return ""
        return lines[-1] if lines[0].startswith("Traceback") else lines[0]


@dataclass(frozen=True)
class SearchRecord:
    """What a search is after, fixed for as long as it runs."""

    name: str
    total_steps: int
    """Steps of a trial that nothing stops."""
    budget_trials: int
    objectives: tuple[Objective, ...]
    """One or several; all count the same."""
    id_domain: str
    ood_domains: tuple[str, ...]
    zero_shot: Mapping[str, float]
    """The model before any step, under the metric names of the trials."""
    config: Mapping[str, object]
    """The resolved configuration file."""
    run_folder: Path
    constraints: tuple[Constraint, ...] = ()
    run_id: str = ""
    """Of the journal: identifies the run in MLflow and Optuna wherever its folder is moved."""

    @property
    def sees_ood(self) -> bool:
        """Whether choosing reads out-of-distribution validation data, which is then not unseen."""
        metrics = [o.metric for o in self.objectives] + [c.metric for c in self.constraints]
        return any(metric.startswith(("ood_val/", "val/")) for metric in metrics)

    @property
    def selection(self) -> str:
        """One sentence for every figure and table: how, and on which split, trials are chosen."""
        wanted = [
            f"the {'highest' if o.mode == 'max' else 'lowest'} {o.metric}" for o in self.objectives
        ]
        text = f"Chosen by {' and '.join(wanted)} at the last step"
        if self.constraints:
            text += f", with {' and '.join(c.text for c in self.constraints)}"
        return f"{text}, which looks at OOD validation data." if self.sees_ood else f"{text}."

    def method(self, record: TrialRecord) -> str | None:
        """What the trial trains with: as proposed, else as configured; None where neither says."""
        if record.kind == "reference":
            return record.trial_id
        configured: object = self.config
        for key in ("trial", *METHOD_KEY.split(".")):
            configured = configured.get(key) if isinstance(configured, Mapping) else None
        name = record.params.get(METHOD_KEY, configured)
        return None if name is None else str(name)

    def methods(self, records: Iterable[TrialRecord]) -> tuple[str, ...]:
        """Those of the trials, no references, each once and in the order of `records`."""
        found = (self.method(record) for record in records if record.kind == "trial")
        return tuple(dict.fromkeys(name for name in found if name is not None))

    def values(self, record: TrialRecord) -> tuple[float, ...] | None:
        """The objectives at the last report, more being better; None where one is absent."""
        signed = []
        for objective in self.objectives:
            value = record.last(objective.metric)
            if value is None:
                return None
            signed.append(objective.signed(value))
        return tuple(signed)

    def bests(self, records: Iterable[TrialRecord]) -> dict[str, float]:
        """For each constraint, by its text, its metric's best among finished trials."""
        found: dict[str, float] = {}
        for record in records:
            found = self.with_bests(found, record)
        return found

    def with_bests(self, bests: Mapping[str, float], record: TrialRecord) -> dict[str, float]:
        """The bests with one more trial looked at."""
        found = dict(bests)
        for constraint in self.constraints:
            value = record.last(constraint.metric)
            if record.kind == "trial" and record.outcome == "finished" and value is not None:
                better = max if constraint.mode == "max" else min
                found[constraint.text] = better(found.get(constraint.text, value), value)
        return found

    def violations(self, record: TrialRecord, bests: Mapping[str, float]) -> dict[str, float]:
        """By how much the trial misses each constraint; at most 0 where it meets it."""
        return {
            c.text: c.violation(record.last(c.metric), c.bound(self.zero_shot, bests.get(c.text)))
            for c in self.constraints
        }


class Callback(Protocol):
    """Whoever wants to know how a search goes on.

    Events come from one thread, in the order of the methods below; the record of the newest event
    is complete, so a callback may ignore all but the last. After a resume, `search_started` comes
    again and so may the events of trials that earlier sessions ran: a callback must take an event
    that it has seen before without counting it twice.
    """

    def search_started(self, search: SearchRecord) -> None:
        """The search begins, or goes on after a resume. May raise: nothing runs yet."""

    def trial_started(self, record: TrialRecord) -> None:
        """A trial starts, or goes on after a resume."""

    def trial_reported(self, record: TrialRecord) -> None:
        """A trial evaluated itself; the report is the last of the curve."""

    def trial_ended(self, record: TrialRecord) -> None:
        """A trial ended, with an outcome other than `running`."""

    def search_ended(self, records: Sequence[TrialRecord], outcome: SearchOutcome) -> None:
        """The search ended; `records` are all its trials, references among them."""


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
