"""Selection rules: which trial the search chooses, and which ones other rules would choose.

The data that a rule looks at determine how its OOD accuracy may be read (Gulrajani and Lopez-Paz,
ICLR 2021: a domain generalisation algorithm must specify its model selection). All rules use
validation splits at a trial's last step; docs/confirm.md says which look at OOD data. `id_val`
favours the method `tpgm`, which learns its radii on the labels of the ID validation split.

A rule affects only the final choice: the trials that were proposed, and those that were stopped
early, followed the objective.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC, MetricKey, val_acc
from tuning.config.objectives import Constraint, Objective
from tuning.log.records import METHOD_KEY, TrialRecord
from tuning.results.goal import Goal
from tuning.results.ranking import (
    Measure,
    best_trial,
    comparable,
    contenders,
    finished_references,
    non_dominated,
    ranked,
)

OBJECTIVE: Final = "objective"
BY_METHOD: Final = "by_method"
ID_VAL: Final = "id_val"
OOD_VAL: Final = "ood_val"
LEAVE_ONE_DOMAIN_OUT: Final = "leave_one_domain_out"
PARETO: Final = "pareto"
FIRST: Final = "first"
"""For `confirm` alone: the trial that the search began with, beside those that rules choose."""
LINE: Final = "line"
"""No rule: the choice of the point of each trial's line, references included."""

PROPOSED_WITH_OOD: Final = (
    "The search used OOD validation data to propose trials, whatever the rule."
)

RULES: Final[Mapping[str, str]] = {
    OBJECTIVE: "The best value of the search's objective.",
    BY_METHOD: "The best value of the objective within each method.",
    ID_VAL: "The highest accuracy in distribution.",
    OOD_VAL: "The highest mean accuracy on the OOD domains, the oracle.",
    LEAVE_ONE_DOMAIN_OUT: "For each OOD domain, the highest mean accuracy on the others.",
    PARETO: "All trials that none beats in both ID and mean OOD accuracy.",
}
"""Rule -> how it chooses, in the order of the tables."""


@dataclass(frozen=True)
class Choice:
    """What a rule chose. Accuracies in percent; None if unknown, or if it chose alternatives."""

    rule: str
    looks_at_ood: bool
    """See `saw_ood`."""
    trials: tuple[TrialRecord, ...] = ()
    """The chosen trials without repetitions: of `pareto` highest ID accuracy first, of `by_method`
    best first."""
    parts: Mapping[str, TrialRecord] = field(default_factory=dict)
    """Of `leave_one_domain_out`: domain left out -> trial that the other domains chose. Of
    `by_method`: method -> best of its trials, and of its reference."""
    id_acc: float | None = None
    """The mean over the parts of `leave_one_domain_out`."""
    ood_acc: float | None = None
    """Over all OOD domains; of `leave_one_domain_out`, each trial on the domain left out."""


def saw_ood(goal: Goal, choice: str = OBJECTIVE) -> bool:
    """Whether OOD validation data, which are then not unseen, took part in a choice.

    Args:
        choice: a rule. By default that of the search, which has also proposed its trials. `LINE` is
            the choice of the point of each trial's line.
    """
    of_line = goal.chooses_points and _read_ood(*goal.objectives)
    if choice == LINE:
        return of_line
    of_all = of_line or _read_ood(*goal.constraints)
    if choice in (ID_VAL, FIRST):
        return of_all
    if choice in (OBJECTIVE, BY_METHOD):
        proposed = _read_ood(*goal.objectives, *goal.sampler_objectives)
        return of_all or goal.used_ood or proposed
    return True


def _read_ood(*parts: Objective | Constraint) -> bool:
    keys = [MetricKey.parse(part.metric) for part in parts]
    return any(key.uses_ood for key in keys if key is not None)


def rules_of(configuration: TrialRecord) -> set[str]:
    """The rules that chose a configuration for `confirm`, without rank, domain or method."""
    return {re.split("[/ ]", label)[0] for label in configuration.labels}


def chosen_with_ood(goal: Goal, configuration: TrialRecord) -> bool:
    """Whether OOD validation data chose a configuration for `confirm`, or its point of the line."""
    return any(saw_ood(goal, choice) for choice in rules_of(configuration) or {LINE})


def methods_of(records: Iterable[TrialRecord]) -> tuple[str | None, ...]:
    """The methods of trials without references, each once, in the order of `records`."""
    return tuple(dict.fromkeys(record.method for record in records if record.kind == "trial"))


def choices(goal: Goal, records: Iterable[TrialRecord]) -> tuple[Choice, ...]:
    """The choice of every rule, in the order of `RULES`; the earlier one of equal trials.

    `by_method` is left out if all trials have the same method. Each rule chooses among its
    `contenders`: finished trials that meet the constraints, or those that come closest to that.
    """
    records, domains = list(records), goal.ood_domains

    def pick(measure: Measure) -> list[TrialRecord]:
        pool = contenders(goal, records, measure)
        return sorted(pool, key=lambda record: (-measure(record), record.number))[:1]

    def without(domain: str) -> Measure:
        others = [name for name in domains if name != domain]

        def over_others(record: TrialRecord) -> float | None:
            found = _mean([record.last(val_acc(name)) for name in others])
            # Rounded, so that equal means tie although their sums differ in the last binary digits.
            return None if found is None else round(found, 9)

        return over_others

    best = best_trial(goal, records)
    found: dict[str, list[TrialRecord]] = {OBJECTIVE: [] if best is None else [best]}
    parts: dict[str, dict[str, TrialRecord]] = {}
    if len(methods_of(records)) > 1:
        parts[BY_METHOD] = best_by_method(goal, records)
        found[BY_METHOD] = [*parts[BY_METHOD].values()]
    found[ID_VAL] = pick(lambda record: record.last(ID_ACC))
    found[OOD_VAL] = pick(lambda record: record.last(OOD_MEAN_ACC)) if domains else []
    left_out = {domain: trial for domain in domains for trial in pick(without(domain))}
    # If no trial can be chosen without one of the domains, the mean over them has no value.
    parts[LEAVE_ONE_DOMAIN_OUT] = left_out if len(left_out) == len(domains) else {}
    found[LEAVE_ONE_DOMAIN_OUT] = [*parts[LEAVE_ONE_DOMAIN_OUT].values()]
    found[PARETO] = _id_ood_front(goal, records) if domains else []

    made = []
    for rule, trials in found.items():
        ids = [trial.last(ID_ACC) for trial in trials]
        oods = [trial.last(OOD_MEAN_ACC) for trial in trials]
        if rule == LEAVE_ONE_DOMAIN_OUT:
            oods = [trial.last(val_acc(domain)) for domain, trial in parts[rule].items()]
        elif len(trials) > 1:  # alternatives
            ids = oods = []
        choice = Choice(
            rule,
            saw_ood(goal, rule),
            tuple({trial.trial_id: trial for trial in trials}.values()),
            parts.get(rule, {}),
            _mean(ids),
            _mean(oods),
        )
        made.append(choice)
    return tuple(made)


def best_by_method(goal: Goal, records: Iterable[TrialRecord]) -> dict[str, TrialRecord]:
    """Method -> the trial that `best_trial` chooses among the method's own; best first.

    So a constraint relative to the `best` refers to the best of the method, as for its sampler, and
    not of another method that trades the metrics differently. Values at different steps are not
    comparable: if any trial of the search finished, a method without a finished trial is left out.
    """
    records = list(records)
    # A reference is the trial of its method at the configured settings, which is not repeated.
    tried = [
        replace(r, kind="trial", params={METHOD_KEY: r.trial_id})
        for r in finished_references(records)
    ]
    trials = ranked(goal, [*records, *tried])
    own = ([r for r in trials if r.method == name] for name in methods_of(records))
    best = {found.trial_id for of_method in own if (found := best_trial(goal, of_method))}
    pool = [record for record in comparable(trials, goal.values) if record.trial_id in best]
    return {str(record.method): record for record in pool}


def _id_ood_front(goal: Goal, records: list[TrialRecord]) -> list[TrialRecord]:
    """The trials that no other one beats in both ID and mean OOD accuracy, highest ID first."""

    def both(record: TrialRecord) -> Any:
        accs = record.last(ID_ACC), record.last(OOD_MEAN_ACC)
        return None if None in accs else accs

    pool = contenders(goal, records, both)
    front = [pool[index] for index in non_dominated([both(record) for record in pool])]
    return sorted(front, key=lambda record: (-both(record)[0], record.number))


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None without values, or if one is not known."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None
