"""The goal of a search: what makes a trial, or a set of weights, better than another one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tuning.config.objectives import Constraint, Objective, nll_of
from tuning.config.schema import SearchFile
from tuning.log.records import TrialRecord


@dataclass(frozen=True)
class Goal:
    """Objectives, and constraints that a choice must meet."""

    objectives: tuple[Objective, ...]
    """One or several, of equal importance."""
    constraints: tuple[Constraint, ...] = ()
    zero_shot: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the model before any step, to which constraints may refer."""
    ood_domains: tuple[str, ...] = ()
    nll: Objective | None = None
    """What the sampler optimises in place of a single accuracy, see `SamplerConfig`."""
    chooses_points: bool = False
    """Whether the objectives choose the point of each line, references included."""
    used_ood: bool = False
    """Whether a run of `search.warm_start` used OOD validation data."""

    @property
    def sampler_objectives(self) -> tuple[Objective, ...]:
        """What the sampler optimises. Nothing is selected by it."""
        return self.objectives if self.nll is None else (self.nll,)

    @property
    def metrics(self) -> set[str]:
        """All metrics that a choice reads."""
        bounded = {constraint.metric for constraint in self.constraints}
        return bounded | {objective.metric for objective in self.objectives}

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

    def fixed(self, records: Iterable[TrialRecord]) -> Goal:
        """The goal whose bounds are numbers: one relative to the best is that of these trials."""
        bests = self.bests(records)
        bounds = [(c, c.bound(self.zero_shot, bests.get(c.text))) for c in self.constraints]
        fixed = [replace(c, anchor=None, offset=bound) for c, bound in bounds if bound is not None]
        return replace(self, constraints=tuple(fixed))

    def missed(self, metrics: Mapping[str, float]) -> float:
        """By how much metrics violate fixed bounds, 0 if they are met."""
        amounts = (c.violation(metrics.get(c.metric), c.offset) for c in self.constraints)
        return sum(max(0.0, amount) for amount in amounts)

    def merit(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """Of metrics of weights, by fixed bounds and then the one objective: greater is better."""
        (objective,) = self.objectives
        value = metrics.get(objective.metric, math.nan)
        signed = objective.signed(value) if math.isfinite(value) else -math.inf
        return -self.missed(metrics), signed

    def nll_in(self, metrics: Mapping[str, float]) -> float:
        """The NLL that decides between weights of equal merit; NaN if none belongs to the goal."""
        return math.nan if self.nll is None else metrics.get(self.nll.metric, math.nan)


def goal_of(file: SearchFile, zero_shot: Mapping[str, float], used_ood: bool = False) -> Goal:
    """The goal of a configuration, once the zero-shot model was evaluated."""
    return Goal(
        objectives=file.objectives,
        constraints=file.constraints(zero_shot),
        zero_shot=zero_shot,
        ood_domains=file.trial.data.ood_domains,
        nll=nll_of(file.objectives),
        chooses_points=bool(file.trial.eval.line_points),
        used_ood=used_ood,
    )
