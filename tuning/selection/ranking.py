"""Which trials can be chosen, which is best, and in what order the others follow it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

from tuning.algorithms.early_stopping import non_dominated
from tuning.runs.records import SearchRecord, TrialRecord

Measure: TypeAlias = Callable[[TrialRecord], float | None]
"""What a rule ranks trials by, more being better; None for a trial that it cannot rank."""


def best_trial(search: SearchRecord, records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The trial with the best objective at its last step, the earlier one of equals.

    The last step and not the best one along the curve: the best of many noisy evaluations is
    optimistic, and more so for trials that evaluate more often. Only finished trials are compared,
    and of those only the ones that meet the constraints; where none does, the ones that miss them
    by least in sum. Where none finished, it is the best of those that got furthest, since values at
    different steps do not compare. With several objectives it is the best by their mean, which lies
    on the Pareto front. References, failed trials and objectives that are not finite never win.
    """
    return highest(search, list(records), score_of(search))


def pareto_front(search: SearchRecord, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The trials, among those that can be chosen, that none beats in all objectives."""
    pool = contenders(search, list(records), score_of(search))
    values = [search.values(record) or () for record in pool]
    return [pool[index] for index in non_dominated(values)]


def misses(search: SearchRecord, records: Iterable[TrialRecord]) -> dict[str, dict[str, float]]:
    """For each trial by its id, the constraints that it misses, and by how much (inf: no value)."""
    trials = [record for record in records if record.kind == "trial"]
    bests = search.bests(trials)
    return {
        record.trial_id: {t: v for t, v in search.violations(record, bests).items() if v > 0}
        for record in trials
    }


def ranked(search: SearchRecord, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """All trials, no references, best first: finished, then cut short by step, then failed.

    Of each group, those that meet the constraints come first.
    """
    trials = [record for record in records if record.kind == "trial"]
    missed = misses(search, trials)

    def key(record: TrialRecord) -> tuple[int, int, float, float, int]:
        group = {"finished": 0, "failed": 2}.get(record.outcome, 1)
        by_step = -record.step if group else 0
        total = sum(missed[record.trial_id].values())
        return group, by_step, total, -search.score(record), record.number

    return sorted(trials, key=key)


def highest(
    search: SearchRecord, records: list[TrialRecord], measure: Measure
) -> TrialRecord | None:
    """Of the `contenders`, the one with the highest measure, the earlier one of equals."""

    def key(record: TrialRecord) -> tuple[float, int]:
        value = measure(record)
        return (-math.inf if value is None else value, -record.number)

    return max(contenders(search, records, measure), key=key, default=None)


def contenders(
    search: SearchRecord, records: list[TrialRecord], measure: Measure
) -> list[TrialRecord]:
    """The trials to choose among, as `best_trial` says: finished, measured, within constraints.

    Where there is none such, what comes closest to it.
    """
    pool = comparable(records, measure)
    missed = {name: sum(by.values()) for name, by in misses(search, records).items()}
    least = min((missed[r.trial_id] for r in pool), default=0.0)
    return [r for r in pool if missed[r.trial_id] == least]


def comparable(records: list[TrialRecord], measure: Measure) -> list[TrialRecord]:
    """The measured trials that finished; where none has, those that got furthest."""
    alive = [r for r in records if r.kind == "trial" and r.outcome != "failed"]
    alive = [r for r in alive if measure(r) is not None]
    pool = [r for r in alive if r.outcome == "finished"]
    if not pool:
        furthest = max((r.step for r in alive), default=0)
        pool = [r for r in alive if r.step == furthest]
    return pool


def score_of(search: SearchRecord) -> Measure:
    """The search's own objective as a measure."""
    return lambda record: None if (score := search.score(record)) == -math.inf else score
