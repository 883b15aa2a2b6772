"""Selection rules: which trial the search chooses, and which ones other rules would choose.

The data that a rule looks at determine how its OOD accuracy may be read (Gulrajani and Lopez-Paz,
ICLR 2021: a domain generalisation algorithm must specify its model selection). All rules use
validation splits at a trial's last step; docs/searching.md says which look at OOD data. `id_val`
favours the method `tpgm`, which learns its radii on the labels of the ID validation split.

A rule affects only the final choice: the trials that were proposed, and those that were stopped
early, followed the objective.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC, val_acc
from tuning.runs.ranking import (
    Measure,
    best_trial,
    comparable,
    contenders,
    highest,
    non_dominated,
    ranked,
)
from tuning.runs.records import SearchRecord, TrialRecord

OBJECTIVE: Final = "objective"
BY_METHOD: Final = "by_method"
ID_VAL: Final = "id_val"
OOD_VAL: Final = "ood_val"
LEAVE_ONE_DOMAIN_OUT: Final = "leave_one_domain_out"
PARETO: Final = "pareto"

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
class Pick:
    """A trial that a rule chose. Accuracies in percent; None if the trial has no finite one."""

    trial: TrialRecord
    id_acc: float | None
    ood_acc: float | None
    """Mean over the OOD domains; accuracy on `left_out` if that is set."""
    worst_acc: float | None
    """Accuracy on the worst OOD domain; accuracy on `left_out` if that is set."""
    left_out: str | None = None
    """OOD domain that the choice did not use."""
    method: str | None = None
    """Method of the trial; None if its configuration does not name one."""


@dataclass(frozen=True)
class Choice:
    """What a rule chose. Accuracies in percent; None if the rule chose a set of alternatives."""

    rule: str
    looks_at_ood: bool
    """See the function of this name."""
    picks: tuple[Pick, ...] = ()
    """One; for `leave_one_domain_out` one per domain; for `pareto` one per member, highest ID
    accuracy first; for `by_method` one per method, best first."""
    reason: str | None = None
    """Why there is no pick."""
    gap: float | None = None
    """Mean OOD accuracy minus that of `ood_val`; 0 is as good as the oracle."""

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        """The chosen trials without repetitions."""
        return tuple({pick.trial.trial_id: pick.trial for pick in self.picks}.values())

    @property
    def by_domain(self) -> Mapping[str, TrialRecord]:
        """For `leave_one_domain_out`: domain left out -> trial chosen by the other domains."""
        return {pick.left_out: pick.trial for pick in self.picks if pick.left_out is not None}

    @property
    def by_method(self) -> Mapping[str, TrialRecord]:
        """For `by_method`: method -> best of its trials."""
        picks = self.picks if self.rule == BY_METHOD else ()
        return {pick.method: pick.trial for pick in picks if pick.method is not None}

    @property
    def id_acc(self) -> float | None:
        """ID accuracy, the mean over the picks."""
        return self._combine(statistics.fmean, [pick.id_acc for pick in self.picks])

    @property
    def ood_acc(self) -> float | None:
        """Mean OOD accuracy, the mean over the picks."""
        return self._combine(statistics.fmean, [pick.ood_acc for pick in self.picks])

    @property
    def worst_acc(self) -> float | None:
        """Accuracy on the worst OOD domain, the minimum over the picks."""
        return self._combine(min, [pick.worst_acc for pick in self.picks])

    def _combine(
        self, combine: Callable[[list[float]], float], values: Sequence[float | None]
    ) -> float | None:
        known = [value for value in values if value is not None]
        is_set = len(self.picks) > 1 and not self.by_domain  # of alternatives
        return combine(known) if values and known == values and not is_set else None


def looks_at_ood(search: SearchRecord, rule: str) -> bool:
    """Whether a rule or a constraint uses OOD validation data.

    Of the search's own objective, also whether its sampler does.
    """
    looks = {OBJECTIVE: search.sees_ood, BY_METHOD: search.sees_ood, ID_VAL: False}
    return looks.get(rule, True) or search.all_rules_see_ood


def choices(search: SearchRecord, records: Iterable[TrialRecord]) -> tuple[Choice, ...]:
    """The choice of every rule, in the order of `RULES`; the earlier one of equal trials.

    `by_method` is left out if all trials have the same method. Each rule chooses among its
    `contenders`: finished trials that meet the constraints, or those that come closest to that.
    """
    records, domains = list(records), search.ood_domains

    def pick(trial: TrialRecord | None, left_out: str | None = None) -> list[Pick]:
        if trial is None:
            return []
        ood, worst = trial.last(OOD_MEAN_ACC), _over(trial, domains, min)
        if left_out is not None:
            ood = worst = trial.last(val_acc(left_out))
        return [Pick(trial, trial.last(ID_ACC), ood, worst, left_out, search.method(trial))]

    def pick_highest(measure: Measure, left_out: str | None = None) -> list[Pick]:
        return pick(highest(search, records, measure), left_out)

    found: dict[str, list[Pick]] = {OBJECTIVE: pick(best_trial(search, records))}
    reasons: dict[str, str] = {}
    if len(search.methods(records)) > 1:
        best = best_by_method(search, records).values()
        found[BY_METHOD] = [p for trial in best for p in pick(trial)]
    found[ID_VAL] = pick_highest(lambda record: record.last(ID_ACC))
    found |= {OOD_VAL: [], LEAVE_ONE_DOMAIN_OUT: [], PARETO: []}
    if domains:
        found[OOD_VAL] = pick_highest(lambda record: record.last(OOD_MEAN_ACC))
        for domain in domains:
            others = [name for name in domains if name != domain]
            found[LEAVE_ONE_DOMAIN_OUT] += pick_highest(
                lambda record, others=others: _over(record, others, statistics.fmean),  # type: ignore[misc]
                domain,
            )
        if len(found[LEAVE_ONE_DOMAIN_OUT]) < len(domains):  # then the mean has no value
            found[LEAVE_ONE_DOMAIN_OUT] = []
        if len(domains) == 1:
            reasons[LEAVE_ONE_DOMAIN_OUT] = "it needs at least two OOD domains"
        found[PARETO] = [p for trial in _id_ood_front(search, records) for p in pick(trial)]
    else:
        reasons = dict.fromkeys(
            (OOD_VAL, LEAVE_ONE_DOMAIN_OUT, PARETO), "the search has no OOD domain"
        )
    made = [
        Choice(
            rule,
            looks_at_ood(search, rule),
            tuple(picks),
            None if picks else reasons.get(rule, "no trial has the metrics that it needs"),
        )
        for rule, picks in found.items()
    ]
    oracle = next(choice.ood_acc for choice in made if choice.rule == OOD_VAL)

    def gap(acc: float | None) -> float | None:
        return None if acc is None or oracle is None else acc - oracle

    return tuple(replace(choice, gap=gap(choice.ood_acc)) for choice in made)


def best_by_method(search: SearchRecord, records: Iterable[TrialRecord]) -> dict[str, TrialRecord]:
    """Method -> the trial that `best_trial` chooses among the method's own; best first.

    So a constraint relative to the `best` refers to the best of the method, as for its sampler, and
    not of another method that trades the metrics differently. Values at different steps are not
    comparable: if any trial of the search finished, a method without a finished trial is left out.
    """
    records = list(records)
    pool = {record.trial_id for record in comparable(records, search.values)}
    own: dict[str | None, list[TrialRecord]] = {}
    for record in records:
        if record.kind == "trial":
            own.setdefault(search.method(record), []).append(record)
    best = {method: best_trial(search, trials) for method, trials in own.items()}
    places = {record.trial_id: place for place, record in enumerate(ranked(search, records))}
    found = [
        (method, record)
        for method, record in best.items()
        if method is not None and record is not None and record.trial_id in pool
    ]
    return dict(sorted(found, key=lambda pair: places[pair[1].trial_id]))


def _id_ood_front(search: SearchRecord, records: list[TrialRecord]) -> list[TrialRecord]:
    """The trials that no other one beats in both ID and mean OOD accuracy, highest ID first."""

    def both(record: TrialRecord) -> tuple[float, float] | None:
        id_acc, ood_acc = record.last(ID_ACC), record.last(OOD_MEAN_ACC)
        return None if id_acc is None or ood_acc is None else (id_acc, ood_acc)

    valued = [(v, r) for r in contenders(search, records, both) if (v := both(r)) is not None]
    front = [valued[index] for index in non_dominated([values for values, _ in valued])]
    front.sort(key=lambda pair: (-pair[0][0], pair[1].number))
    return [record for _, record in front]


def _over(
    record: TrialRecord, domains: Sequence[str], combine: Callable[[list[float]], float]
) -> float | None:
    """The accuracies on the domains in one; None without domains or a finite accuracy on each."""
    known = [v for name in domains if (v := record.last(val_acc(name))) is not None]
    # Rounded, so that equal means tie although their sums differ in the last binary digits.
    return round(combine(known), 9) if known and len(known) == len(domains) else None
