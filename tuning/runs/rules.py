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

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC, val_acc
from tuning.runs.ranking import (
    Measure,
    best_trial,
    comparable,
    contenders,
    finished_references,
    non_dominated,
    ranked,
)
from tuning.runs.records import METHOD_KEY, SearchRecord, TrialRecord

OBJECTIVE: Final = "objective"
BY_METHOD: Final = "by_method"
ID_VAL: Final = "id_val"
OOD_VAL: Final = "ood_val"
LEAVE_ONE_DOMAIN_OUT: Final = "leave_one_domain_out"
PARETO: Final = "pareto"
FIRST: Final = "first"
"""For `confirm` alone: the trial that the search began with, beside those that rules choose."""

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
    """See the function of this name."""
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


def looks_at_ood(search: SearchRecord, rule: str) -> bool:
    """Whether a rule or a constraint uses OOD validation data.

    Of the search's own objective, also whether its sampler does.
    """
    looks = {OBJECTIVE: search.sees_ood, BY_METHOD: search.sees_ood, ID_VAL: False, FIRST: False}
    return looks.get(rule, True) or search.all_rules_see_ood


def rules_of(configuration: TrialRecord) -> set[str]:
    """The rules that chose a configuration for `confirm`, without rank, domain or method."""
    return {re.split("[/ ]", label)[0] for label in configuration.labels}


def chosen_with_ood(search: SearchRecord, configuration: TrialRecord) -> bool:
    """Whether OOD validation data chose a configuration for `confirm`, or its point of the line."""
    if configuration.kind == "reference":
        return search.line_sees_ood
    return any(looks_at_ood(search, rule) for rule in rules_of(configuration))


def choices(search: SearchRecord, records: Iterable[TrialRecord]) -> tuple[Choice, ...]:
    """The choice of every rule, in the order of `RULES`; the earlier one of equal trials.

    `by_method` is left out if all trials have the same method. Each rule chooses among its
    `contenders`: finished trials that meet the constraints, or those that come closest to that.
    """
    records, domains = list(records), search.ood_domains

    def pick(measure: Measure) -> list[TrialRecord]:
        pool = contenders(search, records, measure)
        return sorted(pool, key=lambda record: (-measure(record), record.number))[:1]

    def without(domain: str) -> Measure:
        others = [name for name in domains if name != domain]

        def over_others(record: TrialRecord) -> float | None:
            found = _mean([record.last(val_acc(name)) for name in others])
            # Rounded, so that equal means tie although their sums differ in the last binary digits.
            return None if found is None else round(found, 9)

        return over_others

    best = best_trial(search, records)
    found: dict[str, list[TrialRecord]] = {OBJECTIVE: [] if best is None else [best]}
    parts: dict[str, dict[str, TrialRecord]] = {}
    if len(search.methods(records)) > 1:
        parts[BY_METHOD] = best_by_method(search, records)
        found[BY_METHOD] = [*parts[BY_METHOD].values()]
    found[ID_VAL] = pick(lambda record: record.last(ID_ACC))
    found[OOD_VAL] = pick(lambda record: record.last(OOD_MEAN_ACC)) if domains else []
    left_out = {domain: trial for domain in domains for trial in pick(without(domain))}
    # If no trial can be chosen without one of the domains, the mean over them has no value.
    parts[LEAVE_ONE_DOMAIN_OUT] = left_out if len(left_out) == len(domains) else {}
    found[LEAVE_ONE_DOMAIN_OUT] = [*parts[LEAVE_ONE_DOMAIN_OUT].values()]
    found[PARETO] = _id_ood_front(search, records) if domains else []

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
            looks_at_ood(search, rule),
            tuple({trial.trial_id: trial for trial in trials}.values()),
            parts.get(rule, {}),
            _mean(ids),
            _mean(oods),
        )
        made.append(choice)
    return tuple(made)


def best_by_method(search: SearchRecord, records: Iterable[TrialRecord]) -> dict[str, TrialRecord]:
    """Method -> the trial that `best_trial` chooses among the method's own; best first.

    So a constraint relative to the `best` refers to the best of the method, as for its sampler, and
    not of another method that trades the metrics differently. Values at different steps are not
    comparable: if any trial of the search finished, a method without a finished trial is left out.
    """
    records = list(records)
    methods = search.methods(records)
    # A reference is the trial of its method at the configured settings, which is not repeated.
    tried = [
        replace(r, kind="trial", params={METHOD_KEY: r.trial_id})
        for r in finished_references(records)
    ]
    trials = ranked(search, [*records, *tried])
    own = ([r for r in trials if search.method(r) == name] for name in methods)
    best = {found.trial_id for of_method in own if (found := best_trial(search, of_method))}
    pool = [record for record in comparable(trials, search.values) if record.trial_id in best]
    return {str(search.method(record)): record for record in pool}


def _id_ood_front(search: SearchRecord, records: list[TrialRecord]) -> list[TrialRecord]:
    """The trials that no other one beats in both ID and mean OOD accuracy, highest ID first."""

    def both(record: TrialRecord) -> Any:
        accs = record.last(ID_ACC), record.last(OOD_MEAN_ACC)
        return None if None in accs else accs

    pool = contenders(search, records, both)
    front = [pool[index] for index in non_dominated([both(record) for record in pool])]
    return sorted(front, key=lambda record: (-both(record)[0], record.number))


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None without values, or if one is not known."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None
