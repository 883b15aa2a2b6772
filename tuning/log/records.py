"""Records of trials: plain, frozen, and independent of Ray and Optuna.

A replay builds them from the events of a journal: the recorder while it writes these, a reader from
the file. Tables, MLflow, reports and the display need nothing else, so they can be tested with
records written by hand.

States of a trial: `running` -> one of `finished` (all its steps), `pruned` (stopped early by a
pruner or the user), `failed` (it raised), `stopped` (the search was interrupted, or a budget ended
it). `finished`, `pruned` and `failed` are final. A resume continues the stopped trials.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from trainers.overrides import METHOD_KEY as METHOD_KEY
from tuning.config.objectives import Mode

Outcome: TypeAlias = Literal["running", "finished", "pruned", "failed", "stopped"]
Kind: TypeAlias = Literal["trial", "reference"]
"""A reference is plain fine-tuning beside the search, for comparison; no sampler proposed it."""
SearchOutcome: TypeAlias = Literal["finished", "failed", "stopped"]
ParamValue: TypeAlias = bool | int | float | str

ZERO_SHOT: Final = "zero-shot"
"""Name of the model before any step, in tables and displays."""
STEP: Final = "step"
"""Key of a report: optimiser steps done. Tune's own iteration restarts after a resume."""
TRAIN_CURVE: Final = "train_curve"
"""Key of a report in the journal: metrics of training since the last one, column by column."""
CHOSEN: Final = "model_chosen"
TESTED: Final = "model_tested"
"""Events of a model in the journal of a confirmation."""
MODEL: Final = "model"
"""Its folder below the checkpoint root of a confirmation, and the begin of its name there."""
TRAIN_LOSS: Final = "train/loss"
SECONDS: Final = "cost/seconds"
UNTUNED: Final = "untuned FT"
"""Label of the reference, which nobody should take for a method that was tuned like the trials."""


@dataclass(frozen=True)
class Report:
    """A report as it is in the journal."""

    at: float
    """Unix time."""
    metrics: Mapping[str, float]
    train_curve: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Metrics of training since the report before, column by column."""


def trial_name(number: int) -> str:
    """The name of a trial by its number, counted from 0: `trial-007`."""
    return f"trial-{number:03d}"


@dataclass(frozen=True)
class TrialRecord:
    """The state of one trial; a new record replaces the old one at every event."""

    trial_id: str
    """`trial-007`, or `ft` for the reference; it does not change when a trial is resumed."""
    number: int
    """Order of proposal; -1 for a reference."""
    kind: Kind
    params: Mapping[str, ParamValue]
    """Dotted key -> value that the sampler proposed."""
    outcome: Outcome = "running"
    error: str | None = None
    """What a failed trial raised: a summary in the first line, then details."""
    reason: str = ""
    """Why a trial was pruned (`pruned by asha`, `stopped by the user`), or the budget that stopped
    it."""
    curve: tuple[Mapping[str, float], ...] = ()
    """Every report in order, each flat, with `step` among its keys."""
    reports: tuple[Report, ...] = field(default=(), compare=False)
    """Those of the curve, if a journal was read; a resumed trial may have repeated its last one."""
    returns: int = 0
    """How often the trial went back to an earlier step than that of its last report."""
    progress: Mapping[str, Sequence[float]] = field(default_factory=dict, compare=False)
    """Loss, learning rate and images per second since the last report, column by column, while the
    trial runs."""
    started_at: float | None = None
    """Unix time in seconds at which the last attempt began."""
    ended_at: float | None = None
    gpus: float = 0.0
    """GPUs reserved by the last attempt."""
    earlier_seconds: float = 0.0
    """Wall time of the attempts before the last."""
    earlier_gpu_seconds: float = 0.0
    """GPUs times seconds of the attempts before the last."""
    is_first_point: bool = False
    """Whether the search was given it, as a point of the prior, of `search.space.initial_points` or
    of a warm start: the sampler did not propose it."""
    labels: tuple[str, ...] = ()
    """In a run of `confirm`: the rules that chose the configuration, such as `objective #1` or
    `leave_one_domain_out/sketch+clipart`."""

    def with_attempt(self, at: float, gpus: float) -> TrialRecord:
        """The record when an attempt begins. The costs of earlier attempts add up.

        An attempt without an end, whose driver was lost, lasted until this one begins.
        """
        if self.is_final:
            return self
        return replace(
            self,
            outcome="running",
            error=None,
            reason="",
            started_at=at,
            ended_at=None,
            gpus=gpus,
            progress={},
            earlier_seconds=self.earlier_seconds + self._last_seconds(at),
            earlier_gpu_seconds=self.gpu_seconds(at),
        )

    def with_report(
        self,
        metrics: Mapping[str, float],
        at: float | None = None,
        train_curve: Mapping[str, Sequence[float]] | None = None,
    ) -> TrialRecord:
        """The record after a report.

        A resumed trial repeats steps after its checkpoint. The repeated report counts, since
        training continued from it, and replaces the old one with all that followed.
        """
        if self.is_final:
            return self
        step, reports = metrics[STEP], self.reports
        goes_back = self.step > step
        if goes_back:
            reports = tuple(one for one in reports if one.metrics[STEP] < step)
        if at is not None:
            reports = (*reports, Report(at, metrics, train_curve or {}))
        return replace(
            self,
            curve=(*(point for point in self.curve if point[STEP] < step), metrics),
            reports=reports,
            returns=self.returns + goes_back,
            progress={},
        )

    def with_end(
        self, outcome: Outcome, at: float, error: str | None = None, reason: str = ""
    ) -> TrialRecord:
        """The record at the end of an attempt. A trial with a final outcome keeps it."""
        if self.is_final:
            return self
        ended_at = max(at, self.started_at or at)
        ended = replace(self, outcome=outcome, error=error, reason=reason)
        return replace(ended, ended_at=ended_at, progress={})

    @property
    def is_final(self) -> bool:
        """Whether the trial never runs again."""
        return self.outcome in ("finished", "pruned", "failed")

    @property
    def method(self) -> str | None:
        """The method that was proposed; None if the search compares none."""
        name = self.params.get(METHOD_KEY)
        return None if name is None else str(name)

    @property
    def metrics(self) -> Mapping[str, float]:
        """The last report; empty before the first."""
        return self.curve[-1] if self.curve else {}

    @property
    def step(self) -> int:
        """Optimiser steps at the last report, 0 before it."""
        return int(self.metrics.get("step", 0))

    @property
    def trained_steps(self) -> int:
        """Optimiser steps that are known to be done; more than `step` between two reports."""
        return int(self.progress[STEP][-1]) if self.progress else self.step

    @property
    def seconds(self) -> float | None:
        """Wall time of all attempts; of a running trial, the value of its last report."""
        if self.started_at is not None and self.ended_at is not None:
            return self.earlier_seconds + self._last_seconds(self.ended_at)
        return self.metrics.get(SECONDS)

    def gpu_seconds(self, now: float) -> float:
        """GPUs reserved times seconds, over all attempts, up to its end or to `now`."""
        return self.earlier_gpu_seconds + self.gpus * self._last_seconds(now)

    def _last_seconds(self, now: float) -> float:
        """Wall time of the last attempt, up to its end or to `now`."""
        if self.started_at is None:
            return 0.0
        ended_at = now if self.ended_at is None else self.ended_at
        return max(0.0, ended_at - self.started_at)  # negative if a clock was set back

    @property
    def compact(self) -> TrialRecord:
        """The record with its last report only."""
        return replace(self, curve=self.curve[-1:], reports=self.reports[-1:])

    def last(self, metric: str) -> float | None:
        """The metric in the last report; None if it is missing or not finite."""
        return _finite(self.metrics.get(metric))

    def best(self, metric: str, mode: Mode) -> float | None:
        """The best finite value of the curve; None if there is none."""
        values = [v for point in self.curve if (v := _finite(point.get(metric))) is not None]
        return (max if mode == "max" else min)(values, default=None)

    @property
    def error_line(self) -> str:
        """The first line of the error."""
        return (self.error or "").partition("\n")[0]


def zero_shot_record(metrics: Mapping[str, float]) -> TrialRecord:
    """The zero-shot model in the form of a trial, to stand beside trials."""
    return TrialRecord(ZERO_SHOT, -1, "reference", {}, "finished", curve=(metrics,))


def trial_label(record: TrialRecord) -> str:
    """`trial-007` for a trial, `untuned FT` for the reference, `zero-shot`."""
    is_named = record.kind != "reference" or record.trial_id == ZERO_SHOT
    return record.trial_id if is_named else UNTUNED


@dataclass(frozen=True)
class Chosen:
    """The weights that were chosen, see `trainers.weights.means`."""

    kind: Literal["single", "greedy", "first"]
    """One training of the search or of `confirm`, or the zero-shot model; a greedy soup; the mean
    of the first k trainings."""
    metrics: Mapping[str, float]
    """Of the whole validation splits."""
    trainings: tuple[Mapping[str, Any], ...] = ()
    """What it is made of: `name`, `method`, `seed`, `params` and `point` of each training; nothing
    of the zero-shot model."""
    of_ends: bool = False
    """Whether it is made of the trainings' ends, and not of the points of their lines."""
    line: float = 1.0
    """The point of the line from the zero-shot model through it."""


@dataclass(frozen=True)
class ByRule:
    """What a selection rule that reads fewer labels has chosen of the same candidates."""

    rule: str
    chosen: Chosen
    left_out: str = ""
    """Of `leave_one_domain_out`: the domain that took no part, on which alone it is tested."""
    test: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the test splits; empty before they are read."""


@dataclass(frozen=True)
class Model:
    """Weights that were chosen as the model of a search."""

    number: int
    """From 1 on: `confirm --again` builds another one."""
    chosen: Chosen
    finished: int
    """Number of trials that had finished."""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""
    test: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the test splits; empty before they are read."""
    by_rule: tuple[ByRule, ...] = ()
    """Tested in the same reading."""

    @property
    def training(self) -> str:
        """Under which its predictions are stored."""
        return f"{MODEL}-{self.number}"

    def training_of(self, one: ByRule) -> str:
        """Under which those of a choice by a rule are stored."""
        return "-".join(filter(None, (self.training, one.rule, one.left_out)))


class Reading(NamedTuple):
    """A choice for which the test splits were read, whichever number of calls that took."""

    trials: tuple[str, ...]
    """IDs of the chosen trials, without FT."""
    seeds: int
    """Number of seeds that were asked for."""
    model: int
    """Number of the model that was tested; 0 if the calls built none."""


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
