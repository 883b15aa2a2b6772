"""What the rest of the project knows of a search and its trials: plain, frozen records.

Whoever runs trials turns its own events into these records and gives them to listeners. No listener
needs to know how a trial runs, so tables, MLflow, reports and the display can be tested with
records written by hand, and made again from records read back from a table.

States of a trial: `running` -> one of `finished` (all its steps), `pruned` (the scheduler stopped
it), `failed` (it raised), `stopped` (the user interrupted the search). A stopped or failed trial
may run again after a resume; finished and pruned are final.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias

Outcome: TypeAlias = Literal["running", "finished", "pruned", "failed", "stopped"]
Kind: TypeAlias = Literal["trial", "reference"]
"""A reference is plain fine-tuning beside the search, to compare with; no sampler proposed it."""
SearchOutcome: TypeAlias = Literal["finished", "failed", "stopped"]
Mode: TypeAlias = Literal["max", "min"]
ParamValue: TypeAlias = bool | int | float | str

REFERENCE_KEY: Final = "reference"
"""In the configuration of a Tune trial: the name of the reference that it is."""
STEP: Final = "step"
"""In a report: optimiser steps done. Tune's own iteration starts anew after a resume."""

# The names that reports, MLflow and the tables share. Accuracies are percentages, 0 to 100.
ID_ACC = "id_val/acc"
OOD_MEAN_ACC = "ood_val/mean_acc"
MEAN_ACC = "val/mean_acc"
"""The mean of ID_ACC and OOD_MEAN_ACC."""
TRAIN_LOSS = "train/loss"
SECONDS = "cost/seconds"


def domain_acc(domain: str) -> str:
    """The name of the validation accuracy on one out-of-distribution domain."""
    return f"ood_val/{domain}/acc"


@dataclass(frozen=True)
class TrialRecord:
    """One trial as it stands; a new record replaces the old one at every event."""

    trial_id: str
    number: int
    kind: Kind
    name: str
    """For people: "trial-007", or "ft" for the reference."""
    params: Mapping[str, ParamValue]
    """Dotted key -> value, what the sampler proposed."""
    outcome: Outcome = "running"
    error: str | None = None
    """What a failed trial raised; its first line says what, the rest where."""
    curve: tuple[Mapping[str, float], ...] = ()
    """Every report in order, each flat, with "step" among its keys."""
    started_at: float | None = None
    """Unix time in seconds."""
    ended_at: float | None = None

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
        """Wall time from start to end; while it runs, what its last report says."""
        if self.started_at is not None and self.ended_at is not None:
            return self.ended_at - self.started_at
        return self.metrics.get(SECONDS)

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
    objective_metric: str
    objective_mode: Mode
    id_domain: str
    ood_domains: tuple[str, ...]
    zero_shot: Mapping[str, float]
    """The model before any step, under the metric names of the trials."""
    config: Mapping[str, object]
    """The resolved configuration file."""
    run_folder: Path
    sees_ood: bool
    """The objective reads out-of-distribution validation data, so those are no longer unseen."""

    @property
    def selection(self) -> str:
        """One sentence for every figure and table: how, and on which split, trials are chosen."""
        best = "highest" if self.objective_mode == "max" else "lowest"
        text = f"Chosen by the {best} {self.objective_metric} at the last step"
        return f"{text}, which looks at OOD validation data." if self.sees_ood else f"{text}."


class Listener(Protocol):
    """Whoever wants to know how a search goes on.

    Events come from one thread, in the order of the methods below; the record of the newest event
    is complete, so a listener may ignore all but the last. After a resume, `search_started` comes
    again and so may the events of trials that earlier sessions ran: a listener must take an event
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
