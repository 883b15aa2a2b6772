"""Whether early values rank trials as their final values do, checked before any trial is stopped.

A learning rate that wins early may lose in the end, and then a rung removes the best trials. So the
first trials run to their end. Spearman's rank correlation between their values at a step and their
final objectives decides whether trials are stopped at that step. The estimate itself decides: a
handful of trials can show that a rung reverses the ranking, but its 95 % interval is wide, so they
seldom prove that it does not.

Trials are compared by the metric that the sampler optimises: the NLL at a rung also ranks the final
accuracies where the accuracy there does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final

import numpy as np
from pydantic import TypeAdapter

from tuning.algorithms.early_stopping import (
    Asha,
    Hyperband,
    MedianRule,
    StoppingRule,
    Values,
    rung_ladder,
)
from tuning.config.objectives import Objective
from tuning.config.schema import (
    CheckedConfig,
    HyperbandConfig,
    MedianConfig,
    NoSchedulerConfig,
    RungConfig,
    SchedulerConfig,
)
from tuning.runs.records import METHOD_KEY, STEP, SearchRecord, TrialRecord

LEAST_TRIALS: Final = 3
"""Smallest number of trials for a rank correlation."""
_SCHEDULER: Final[TypeAdapter[SchedulerConfig]] = TypeAdapter(SchedulerConfig)


@dataclass(frozen=True)
class RungCheck:
    """How well the values at a step rank trials as their final objectives do."""

    step: int
    trials: int
    correlation: float
    """Spearman's; the lowest of the objectives. NaN if all values are equal, or too few."""
    least: float
    """Correlation above which trials are stopped at this step."""

    @property
    def stops(self) -> bool:
        """Whether trials are stopped here."""
        # Not by the rounding of a tie: with 4 trials, 0.4 is computed as 0.39999999999999997.
        return self.correlation > self.least + 1e-9

    def __str__(self) -> str:
        """For people, such as `step 60: 0.83 [-0.12, 0.99] in 6 trials; may stop: above 0.4`."""
        low, high = interval(self.correlation, self.trials)
        found = f"{self.correlation:.2f} [{low:.2f}, {high:.2f}]"
        if math.isnan(self.correlation):
            is_few = self.trials < LEAST_TRIALS
            found = f"undefined ({'too few values' if is_few else 'all values were equal'})"
        verdict = f"may stop: above {self.least:g}" if self.stops else "stops no trial"
        if self.stops and low < self.least:
            verdict += ", though lower values are not ruled out"
        return f"step {self.step}: {found} in {self.trials} trials; {verdict}"


class CheckedRule:
    """A rule that stops trials only at steps whose values rank trials like their final objectives.

    Until `trials` have run to their end, it stops none of them, except for those without finite
    values. Trials that end later do not count. By then, weak trials have been stopped, and
    the correlation among the others is biased.
    """

    def __init__(
        self, rule: StoppingRule, total_steps: int, trials: int, min_correlation: float
    ) -> None:
        self._rule, self._total_steps = rule, total_steps
        self._trials, self._least = trials, min_correlation
        self._curves: dict[int, dict[int, Values]] = {}
        self._finals: dict[int, Values] = {}
        self._checks: dict[int, RungCheck] = {}

    @property
    def is_decided(self) -> bool:
        """Whether enough trials have run to their end."""
        return len(self._finals) >= self._trials

    def should_continue(self, number: int, step: int, values: Values | None) -> bool:
        """Apply the rule, where the check allows it."""
        if not self.is_decided and values is not None:
            self._curves.setdefault(number, {})[step] = values
        goes_on = self._rule.should_continue(number, step, values)
        if goes_on or values is None:
            return goes_on
        return not (self.is_decided and self.check(step).stops)

    def finish(self, number: int, objectives: Values) -> None:
        """Take the final objectives of a trial into account, after its last report."""
        if not self.is_decided:
            self._finals[number] = objectives

    def decide(self) -> None:
        """Check with the trials that have run to their end by now, if they are enough."""
        if len(self._finals) >= LEAST_TRIALS:
            self._trials = min(self._trials, len(self._finals))

    def check(self, step: int) -> RungCheck:
        """Once it is decided: the check of a step, by the last values of each trial up to it."""
        if step not in self._checks:
            early, final = [], []
            for number, last in self._finals.items():
                before = [s for s in self._curves[number] if s <= step]
                if before:
                    early.append(self._curves[number][max(before)])
                    final.append(last)
            correlation = _least_correlation(early, final)
            self._checks[step] = RungCheck(step, len(final), correlation, self._least)
        return self._checks[step]

    @property
    def steps(self) -> list[int]:
        """Steps before the last at which trials that ran to their end have reported."""
        reported = {step for number in self._finals for step in self._curves[number]}
        return sorted(step for step in reported if step < self._total_steps)


class SearchRule:
    """The rule of a whole search: each method has its own, and reports come as trials make them.

    Args:
        config: of the search.
        trials: budget of each method.
        method: method of trials whose parameters name none.
        ranked_by: what compares trials before their end: as many as the objectives, or one for all
            of them. By default the objectives.
        eval_every: steps between reports.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        objectives: Sequence[Objective],
        total_steps: int,
        trials: int | None = None,
        method: str | None = None,
        ranked_by: Sequence[Objective] | None = None,
        eval_every: int = 1,
    ) -> None:
        self._config, self._objectives = config, objectives
        self._ranked_by = objectives if ranked_by is None else ranked_by
        self._total_steps, self._trials, self._method = total_steps, trials, method
        self._eval_every = eval_every
        self._rules: dict[Any, StoppingRule | None] = {}  # by method, once it has a report

    def should_continue(
        self, number: int, params: Mapping[str, Any], report: Mapping[str, Any]
    ) -> bool:
        """Take a report of a trial into account, and return whether it continues."""
        method = params.get(METHOD_KEY, self._method)
        if method not in self._rules:
            self._rules[method] = create_rule(
                self._config, self._total_steps, self._trials, self._eval_every
            )
        rule, objectives = self._rules[method], _signed(report, self._objectives)
        step, values = int(report[STEP]), self._values(report)
        goes_on = rule is None or rule.should_continue(number, step, values)
        if isinstance(rule, CheckedRule) and values and objectives and step >= self._total_steps:
            rule.finish(number, objectives)
        return goes_on

    def _values(self, report: Mapping[str, Any]) -> Values | None:
        """What the rule compares; None if that or an objective is not finite."""
        return _signed(report, self._objectives) and _signed(report, self._ranked_by)

    def replay(self, records: Iterable[TrialRecord]) -> None:
        """Take the curves of earlier sessions into account, in the order in which they ended."""
        trials = [record for record in records if record.kind == "trial"]
        for record in sorted(trials, key=lambda record: record.ended_at or math.inf):
            if record.outcome == "pruned" and self._values(record.metrics) is not None:
                # An earlier session had decided, maybe with fewer trials: its budget was smaller.
                rule = self._rules.get(record.params.get(METHOD_KEY, self._method))
                if isinstance(rule, CheckedRule):
                    rule.decide()
            # A stopped trial repeats its last report, which may have been found in a checkpoint: it
            # is decided then.
            curve = record.curve[:-1] if record.outcome == "stopped" else record.curve
            for report in curve:
                self.should_continue(record.number, record.params, report)

    def describe(self) -> str:
        """One line, after a `replay`: the rule, and what it waits for."""
        config = self._config
        if isinstance(config, NoSchedulerConfig):
            return "Stopping    none"
        checked = _checked_trials(config, self._trials)
        rules = self._rules.values()
        if rules and all(isinstance(rule, CheckedRule) and rule.is_decided for rule in rules):
            return f"Stopping    {config.name}, checked in an earlier session"
        if checked == 0:
            return f"Stopping    {config.name}, unchecked"
        if checked < LEAST_TRIALS:
            return f"Stopping    none: too few trials to check {config.name}"
        return f"Stopping    {config.name}, once {checked} trials have run to their end"

    def checks(self) -> dict[str | None, list[RungCheck]]:
        """By method, the check of each step at which trials are compared, once it is decided."""
        found: dict[str | None, list[RungCheck]] = {}
        if isinstance(self._config, NoSchedulerConfig):
            return found
        grace = self._config.first_step(self._total_steps, self._eval_every)
        for method, rule in self._rules.items():
            if isinstance(rule, CheckedRule) and rule.is_decided:
                steps = [step for step in rule.steps if step >= grace]
                if isinstance(self._config, RungConfig):
                    # A rung is compared at the first report at or after it.
                    factor, last = self._config.reduction_factor, max(steps, default=0) + 1
                    rungs = rung_ladder(grace, factor, last)
                    steps = sorted({min(s for s in steps if s >= rung) for rung in rungs})
                found[method] = [rule.check(step) for step in steps]
        return found

    def describe_checks(self) -> list[str]:
        """One line for each method and step."""
        early, final = (
            " and ".join(objective.metric for objective in measured)
            for measured in (self._ranked_by, self._objectives)
        )
        return [
            f"Rank correlation of {early} with the final {final}"
            f"{f' of {method}' if method else ''}, {check}"
            for method, of_method in self.checks().items()
            for check in of_method
        ]


def create_rule(
    config: SchedulerConfig, total_steps: int, trials: int | None = None, eval_every: int = 1
) -> StoppingRule | None:
    """The stopping rule of a configuration; None if every trial runs to its end.

    Args:
        trials: that are compared with each other, of which half at most run to their end for the
            check. None stops trials unchecked.
        eval_every: steps between reports.
    """
    rule: StoppingRule
    if isinstance(config, NoSchedulerConfig):
        return None
    grace_steps = config.first_step(total_steps, eval_every)
    if isinstance(config, MedianConfig):
        rule = MedianRule(grace_steps, config.min_trials)
    else:
        rungs = rung_ladder(grace_steps, config.reduction_factor, total_steps)
        if isinstance(config, HyperbandConfig):
            rule = Hyperband(rungs, config.reduction_factor, config.brackets)
        else:
            rule = Asha(rungs, config.reduction_factor)
    checked = _checked_trials(config, trials)
    if checked == 0:
        return rule
    if checked < LEAST_TRIALS:  # too small a search to know
        return None
    return CheckedRule(rule, total_steps, checked, config.min_correlation)


def _checked_trials(config: CheckedConfig, trials: int | None) -> int:
    """Trials that run to their end for the check; 0 without a check."""
    if trials is None or not config.check_trials:
        return 0
    return max(1, min(config.check_trials, trials // 2))


def search_rule(search: SearchRecord) -> SearchRule:
    """The rule of a search, without observations."""
    scheduler = search.configured("search", "scheduler") or NoSchedulerConfig()
    eval_every = search.configured("trial", "eval", "every")
    return SearchRule(
        _SCHEDULER.validate_python(scheduler),
        search.objectives,
        search.total_steps,
        search.trials_per_method,
        search.configured_method,
        search.sampler_objectives,
        eval_every if isinstance(eval_every, int) else 1,
    )


def describe_checks(search: SearchRecord, records: Iterable[TrialRecord]) -> list[str]:
    """One line for each method and step; empty until enough trials have finished."""
    rule = search_rule(search)
    rule.replay(records)
    return rule.describe_checks()


def interval(correlation: float, trials: int) -> tuple[float, float]:
    """95 % interval of Spearman's correlation, by Fisher's transformation.

    The standard error is that of Bonett and Wright (Psychometrika 65, 2000). A correlation of 1 is
    moved half the way to the next lower possible one, since its transform is infinite.
    """
    if trials <= LEAST_TRIALS or math.isnan(correlation):
        return -1.0, 1.0
    bound = 1 - 6 / (trials * (trials**2 - 1))
    r = min(max(correlation, -bound), bound)
    margin = 1.96 * math.sqrt((1 + r**2 / 2) / (trials - 3))
    return math.tanh(math.atanh(r) - margin), math.tanh(math.atanh(r) + margin)


def _signed(report: Mapping[str, Any], measured: Sequence[Objective]) -> Values | None:
    """The values of a report, the higher the better; None if one of them is not finite."""
    found = tuple(o.signed(float(report.get(o.metric, math.nan))) for o in measured)
    return found if all(map(math.isfinite, found)) else None


def _least_correlation(early: Sequence[Values], final: Sequence[Values]) -> float:
    """The lowest rank correlation of an objective with the value that belongs to it."""
    if len(final) < LEAST_TRIALS:
        return math.nan
    # A single value belongs to all objectives.
    columns = zip(cycle(zip(*early, strict=True)), zip(*final, strict=True), strict=False)
    found = [_spearman(before, last) for before, last in columns]
    return math.nan if any(map(math.isnan, found)) else min(found)


def _spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """NaN if all values are equal. `status` has no time to import scipy, which has it too."""
    ranks = []
    for values in (first, second):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        if len(counts) == 1:
            return math.nan
        ranks.append((counts.cumsum() - (counts - 1) / 2)[place])  # equal values: the mean rank
    first_ranks, second_ranks = (of - of.mean() for of in ranks)
    spread = np.sqrt((first_ranks**2).sum() * (second_ranks**2).sum())
    return float(first_ranks @ second_ranks / spread)
