"""Which trial a search chooses, what other rules would have chosen, and what each may claim.

What a rule may look at decides what its figure means (Gulrajani and Lopez-Paz, ICLR 2021: domain
generalisation without a selection criterion is not a method). The rules, all at a trial's last
step, all on validation splits:

| rule | chooses by | its OOD figure |
|---|---|---|
| objective | the search's own objective | optimistic where that looks at OOD data |
| by_method | the same, among the trials of each method | as of `objective` |
| id_val | ID accuracy | honest: OOD data had no say in the choice |
| ood_val | mean OOD accuracy | the oracle: chosen on the very data it reports |
| leave_one_domain_out | for each OOD domain, the mean of the others | honest: on the one left out |
| worst_domain | the lowest accuracy among the OOD domains | optimistic |
| pareto | nothing: all that none beats in both ID and OOD accuracy | what can be had |

`by_method` is there only where the trials of a search have several methods. `id_val` favours the
method `tpgm`, which learns its radii on the labels of that very split.

Where all trials have all figures none is above the oracle, so the gap is what not knowing the shift
costs. A rule speaks of the choice alone: which trials were proposed, and which were stopped early,
followed the objective.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from tuning.runs.records import ID_ACC, OOD_MEAN_ACC, SearchRecord, TrialRecord, domain_acc
from tuning.selection.ranking import (
    Measure,
    best_trial,
    comparable,
    contenders,
    highest,
    misses,
    pareto_front,
    ranked,
    score_of,
)

__all__ = [
    "BY_METHOD",
    "ID_VAL",
    "LEAVE_ONE_DOMAIN_OUT",
    "OBJECTIVE",
    "OOD_VAL",
    "PARETO",
    "RULES",
    "WORST_DOMAIN",
    "Choice",
    "Pick",
    "best_by_method",
    "best_trial",
    "choices",
    "misses",
    "pareto_front",
    "ranked",
]

OBJECTIVE: Final = "objective"
BY_METHOD: Final = "by_method"
ID_VAL: Final = "id_val"
OOD_VAL: Final = "ood_val"
LEAVE_ONE_DOMAIN_OUT: Final = "leave_one_domain_out"
WORST_DOMAIN: Final = "worst_domain"
PARETO: Final = "pareto"

RULES: Final[Mapping[str, str]] = MappingProxyType(
    {
        OBJECTIVE: "What the search itself is after.",
        BY_METHOD: "The same, within each method.",
        ID_VAL: "The highest accuracy in distribution.",
        OOD_VAL: "The highest mean accuracy on the OOD domains, the oracle.",
        LEAVE_ONE_DOMAIN_OUT: "For each OOD domain, the highest mean accuracy on the others.",
        WORST_DOMAIN: "The highest accuracy on the OOD domain that is worst for the trial.",
        PARETO: "All trials that none beats in both ID and mean OOD accuracy.",
    }
)
"""In the order in which they are shown: name, and how it chooses."""


@dataclass(frozen=True)
class Pick:
    """A trial that a rule chose. Accuracies in percent; None where the trial has no finite one."""

    trial: TrialRecord
    id_acc: float | None
    ood_acc: float | None
    """The mean of the OOD domains; for a trial chosen without one of them, the accuracy on it."""
    worst_acc: float | None
    """On the OOD domain that is worst; for a trial chosen without one of them, as `ood_acc`."""
    left_out: str | None = None
    """The OOD domain that had no say in the choice."""
    method: str | None = None
    """What the trial trains with; None where its configuration does not say."""


@dataclass(frozen=True)
class Choice:
    """What a rule chose. Accuracies in percent; None for those of a rule that chose a whole set."""

    rule: str
    looks_at_ood: bool
    """Whether OOD validation data, by rule or by constraint, had a say in it."""
    picks: tuple[Pick, ...] = ()
    """One; one a domain for `leave_one_domain_out`; one a member for `pareto`, highest ID first;
    one a method for `by_method`, best first."""
    reason: str | None = None
    """Why there is no pick."""
    gap: float | None = None
    """Mean OOD accuracy less that of `ood_val`; 0 is as good as the oracle."""
    id_gap: float | None = None
    """ID accuracy less that of `id_val`: what was given up in distribution."""

    @property
    def description(self) -> str:
        """How the rule chooses, in a sentence."""
        return RULES[self.rule]

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        """The trials chosen, each once."""
        return tuple({pick.trial.trial_id: pick.trial for pick in self.picks}.values())

    @property
    def is_set(self) -> bool:
        """Whether the picks are alternatives, of which none stands for all."""
        return len(self.picks) > 1 and not self.by_domain

    @property
    def by_domain(self) -> Mapping[str, TrialRecord]:
        """Of `leave_one_domain_out`: the domain left out -> the trial chosen by the others."""
        return {pick.left_out: pick.trial for pick in self.picks if pick.left_out is not None}

    @property
    def by_method(self) -> Mapping[str, TrialRecord]:
        """Of the rule of that name: the method -> the best of its trials."""
        picks = self.picks if self.rule == BY_METHOD else ()
        return {pick.method: pick.trial for pick in picks if pick.method is not None}

    @property
    def id_acc(self) -> float | None:
        """ID accuracy, the mean over the picks."""
        return self._fold(statistics.fmean, [pick.id_acc for pick in self.picks])

    @property
    def ood_acc(self) -> float | None:
        """Mean OOD accuracy; the mean over the left-out domains where those are left out."""
        return self._fold(statistics.fmean, [pick.ood_acc for pick in self.picks])

    @property
    def worst_acc(self) -> float | None:
        """Accuracy on the worst OOD domain, or on the worst left-out domain."""
        return self._fold(min, [pick.worst_acc for pick in self.picks])

    def _fold(
        self, fold: Callable[[list[float]], float], values: Sequence[float | None]
    ) -> float | None:
        known = [value for value in values if value is not None]
        return fold(known) if values and known == values and not self.is_set else None


def choices(search: SearchRecord, records: Iterable[TrialRecord]) -> tuple[Choice, ...]:
    """What every rule chooses, in the order of `RULES`; equal trials go to the earlier.

    `by_method` is left out where all trials have one method. Each chooses among the trials that
    `best_trial` would choose among, had it the rule's measure: finished ones that meet the
    constraints, or what comes closest to that.
    """
    records = list(records)
    found = [
        _choice(search, OBJECTIVE, _single(search, records, score_of(search))),
        *_method_choices(search, records),
        _choice(search, ID_VAL, _single(search, records, lambda r: r.last(ID_ACC))),
        *_ood_choices(search, records),
    ]
    id_acc = next(choice.id_acc for choice in found if choice.rule == ID_VAL)
    ood_acc = next(choice.ood_acc for choice in found if choice.rule == OOD_VAL)
    return tuple(
        replace(c, gap=_less(c.ood_acc, ood_acc), id_gap=_less(c.id_acc, id_acc)) for c in found
    )


def best_by_method(search: SearchRecord, records: Iterable[TrialRecord]) -> dict[str, TrialRecord]:
    """For each method the trial that `best_trial` would choose among its own; best first.

    Values at different steps do not compare: where any trial of the search finished, a method of
    which none did is left out. Bounds on the `best` are those of the whole search.
    """
    records = list(records)
    pool = {record.trial_id for record in comparable(records, score_of(search))}
    found: dict[str, TrialRecord] = {}
    for record in ranked(search, records):
        method = search.method(record)
        if record.trial_id in pool and method is not None:
            found.setdefault(method, record)
    return found


def _method_choices(search: SearchRecord, records: list[TrialRecord]) -> list[Choice]:
    """Nothing where all have one method: it would be the objective's choice again."""
    if len(search.methods(records)) < 2:
        return []
    picks = tuple(_pick(search, record) for record in best_by_method(search, records).values())
    return [_choice(search, BY_METHOD, picks)]


def _ood_choices(search: SearchRecord, records: list[TrialRecord]) -> list[Choice]:
    """The rules that look at OOD data, each absent where its domains are."""
    domains = search.ood_domains
    rules = (OOD_VAL, LEAVE_ONE_DOMAIN_OUT, WORST_DOMAIN, PARETO)
    if not domains:
        return [_choice(search, rule, (), "the search has no OOD domain") for rule in rules]
    left_out = _leave_one_out(search, records) if len(domains) > 1 else ()
    reason = "it takes two OOD domains or more" if len(domains) == 1 else None
    return [
        _choice(search, OOD_VAL, _single(search, records, lambda r: r.last(OOD_MEAN_ACC))),
        _choice(search, LEAVE_ONE_DOMAIN_OUT, left_out, reason),
        _choice(search, WORST_DOMAIN, _single(search, records, lambda r: _worst(r, domains))),
        _choice(search, PARETO, _pareto(search, records)),
    ]


def _choice(
    search: SearchRecord, rule: str, picks: tuple[Pick, ...], reason: str | None = None
) -> Choice:
    if not picks and reason is None:
        reason = "no trial has the figures that it takes"
    sees_ood = search.sees_ood if rule in (OBJECTIVE, BY_METHOD) else rule != ID_VAL
    constraints = replace(search, objectives=())
    return Choice(rule, sees_ood or constraints.sees_ood, picks, reason)


def _single(search: SearchRecord, records: list[TrialRecord], measure: Measure) -> tuple[Pick, ...]:
    chosen = highest(search, records, measure)
    return () if chosen is None else (_pick(search, chosen),)


def _leave_one_out(search: SearchRecord, records: list[TrialRecord]) -> tuple[Pick, ...]:
    picks = []
    for domain in search.ood_domains:
        others = [name for name in search.ood_domains if name != domain]
        chosen = highest(search, records, lambda r, others=others: _mean(r, others))  # type: ignore[misc]
        if chosen is None:
            return ()
        unseen = chosen.last(domain_acc(domain))
        method = search.method(chosen)
        picks.append(Pick(chosen, chosen.last(ID_ACC), unseen, unseen, domain, method))
    return tuple(picks)


def _pareto(search: SearchRecord, records: list[TrialRecord]) -> tuple[Pick, ...]:
    def both(record: TrialRecord) -> tuple[float, ...]:
        values = (record.last(ID_ACC), record.last(OOD_MEAN_ACC))
        return tuple(value for value in values if value is not None)

    pool = contenders(search, records, lambda r: sum(both(r)) if len(both(r)) == 2 else None)
    pool.sort(key=lambda record: (*(-value for value in both(record)), record.number))
    front: list[TrialRecord] = []
    for record in pool:  # from the highest ID down, so those before cannot be beaten in ID
        last = both(front[-1]) if front else (math.inf, -math.inf)
        if both(record)[1] > last[1] or both(record) == last:
            front.append(record)
    return tuple(_pick(search, record) for record in front)


def _pick(search: SearchRecord, record: TrialRecord) -> Pick:
    worst = _worst(record, search.ood_domains)
    id_acc, ood_acc = record.last(ID_ACC), record.last(OOD_MEAN_ACC)
    return Pick(record, id_acc, ood_acc, worst, method=search.method(record))


def _domain_accs(record: TrialRecord, domains: Sequence[str]) -> list[float] | None:
    """None where one of them, or every domain, is missing."""
    known = [v for name in domains if (v := record.last(domain_acc(name))) is not None]
    return known if known and len(known) == len(domains) else None


def _worst(record: TrialRecord, domains: Sequence[str]) -> float | None:
    accs = _domain_accs(record, domains)
    return None if accs is None else min(accs)


def _mean(record: TrialRecord, domains: Sequence[str]) -> float | None:
    accs = _domain_accs(record, domains)
    return None if accs is None else statistics.fmean(accs)


def _less(value: float | None, best: float | None) -> float | None:
    return None if value is None or best is None else value - best
