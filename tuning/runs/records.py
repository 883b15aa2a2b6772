"""Records of a search and of its trials: plain, frozen, and independent of Ray and Optuna.

A replay builds them from the events of a journal: the recorder while it writes these, a reader from
the file. Tables, MLflow, reports and the display need nothing else, so they can be tested with
records written by hand.

States of a trial: `running` -> one of `finished` (all its steps), `pruned` (stopped early by a
pruner or the user), `failed` (it raised), `stopped` (the search was interrupted, or a budget ended
it). `finished`, `pruned` and `failed` are final. A resume continues the stopped trials.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias

from search_spaces.space import Spaces
from trainers.evaluation.metrics import MetricKey
from trainers.overrides import METHOD_KEY as METHOD_KEY
from tuning.config.objectives import Constraint, Mode, Objective

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
TRAIN_LOSS: Final = "train/loss"
SECONDS: Final = "cost/seconds"
UNTUNED: Final = "untuned FT"
"""Label of the reference, which nobody should take for a method that was tuned like the trials."""


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

    def with_report(self, report: Mapping[str, float]) -> TrialRecord:
        """The record after a report.

        A resumed trial repeats steps after its checkpoint. The repeated report counts, since
        training continued from it, and replaces the old one with all that followed.
        """
        if self.is_final:
            return self
        curve = self.curve
        if curve and curve[-1][STEP] >= report[STEP]:
            curve = tuple(point for point in curve if point[STEP] < report[STEP])
        return replace(self, curve=(*curve, report), progress={})

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
        return replace(self, curve=self.curve[-1:])

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
class SearchRecord:
    """The goal of a search: fixed while it runs."""

    name: str
    total_steps: int
    """Steps of a trial that nothing stops."""
    budget_trials: int
    """Most trials: those of the budget, or of a smaller grid."""
    objectives: tuple[Objective, ...]
    """One or several, of equal importance."""
    id_domain: str
    ood_domains: tuple[str, ...]
    zero_shot: Mapping[str, float]
    """Metrics of the model before any step, under the names that trials report."""
    config: Mapping[str, object]
    """The resolved configuration file."""
    run_folder: Path
    spaces: Spaces = field(default_factory=dict)
    """What is searched; empty if nothing is, as in `confirm`."""
    constraints: tuple[Constraint, ...] = ()
    run_id: str = ""
    """Of the journal: identifies the run in MLflow and Optuna wherever its folder is moved."""
    nll: Objective | None = None
    """What the sampler optimises in place of a single accuracy, see `SamplerConfig`."""
    used_ood: bool = False
    """Whether a run of `search.warm_start` used OOD validation data."""
    ended_by: str = ""
    """See `History.ended_by`."""
    damage: str = ""
    """Which lines of the journal are damaged, and what may be missing; empty if it is whole."""

    def configured(self, *keys: str) -> object:
        """A value of the configuration, or None if it has no such key."""
        value: object = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    @property
    def sampler_objectives(self) -> tuple[Objective, ...]:
        """What the sampler optimises. Nothing is selected by it."""
        return self.objectives if self.nll is None else (self.nll,)

    @property
    def sees_ood(self) -> bool:
        """Whether OOD validation data, which are then not unseen, chose or proposed trials."""
        return self.used_ood or _uses_ood(
            *self.objectives, *self.constraints, *self.sampler_objectives
        )

    @property
    def all_rules_see_ood(self) -> bool:
        """Whether a constraint, which all selection rules obey, reads OOD validation data, or the
        objective does that chose the point of each trial's line."""
        return _uses_ood(*self.constraints) or self.line_sees_ood

    @property
    def line_sees_ood(self) -> bool:
        """Whether the objective chose the point of each line, references included, and reads OOD
        validation data."""
        line = self.configured("trial", "eval", "line")
        on_line = line == "auto" or (isinstance(line, Sequence) and line != "off")
        return on_line and _uses_ood(*self.objectives)

    @property
    def configured_method(self) -> str | None:
        """The method of trials whose parameters name none; None if it is not known."""
        name = self.configured("trial", *METHOD_KEY.split("."))
        return None if name is None else str(name)

    def method(self, record: TrialRecord) -> str | None:
        """The fine-tuning method of a trial: proposed, else configured, else None."""
        if record.kind == "reference":
            return record.trial_id
        name = record.params.get(METHOD_KEY, self.configured_method)
        return None if name is None else str(name)

    @property
    def reference_params(self) -> dict[str, ParamValue]:
        """The learning rate of plain fine-tuning, which has it from the configuration."""
        value = self.configured("trial", "optim", "lr")
        return {"optim.lr": float(value)} if isinstance(value, int | float) else {}

    def methods(self, records: Iterable[TrialRecord]) -> tuple[str, ...]:
        """The methods of the trials without references, each once, in the order of `records`."""
        found = (self.method(record) for record in records if record.kind == "trial")
        return tuple(dict.fromkeys(name for name in found if name is not None))

    def values(self, record: TrialRecord) -> tuple[float, ...] | None:
        """The signed objectives at the last report, more being better; None if one is missing."""
        found = [(objective, record.last(objective.metric)) for objective in self.objectives]
        signed = tuple(o.signed(value) for o, value in found if value is not None)
        return signed if len(signed) == len(found) else None

    def bests(self, records: Iterable[TrialRecord]) -> dict[str, float]:
        """The best value of each constraint's metric among finished trials, by constraint text."""
        found: dict[str, float] = {}
        for record, constraint in itertools.product(records, self.constraints):
            value = record.last(constraint.metric)
            if record.kind == "trial" and record.outcome == "finished" and value is not None:
                better = max if constraint.mode == "max" else min
                found[constraint.text] = better(found.get(constraint.text, value), value)
        return found

    def violations(self, record: TrialRecord, bests: Mapping[str, float]) -> dict[str, float]:
        """How far a trial is from meeting each constraint; at most 0 if it is met."""
        return {
            c.text: c.violation(record.last(c.metric), c.bound(self.zero_shot, bests.get(c.text)))
            for c in self.constraints
        }


def _uses_ood(*parts: Objective | Constraint) -> bool:
    keys = [MetricKey.parse(part.metric) for part in parts]
    return any(key.uses_ood for key in keys if key is not None)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
