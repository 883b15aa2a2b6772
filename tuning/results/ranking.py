"""Which trials can be chosen, which one is best, the order of all others, and how sure it is."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from statistics import NormalDist
from typing import Any, Final, TypeAlias

from search_spaces import Float
from search_spaces.space import Spaces
from tuning.log.records import METHOD_KEY, TrialRecord, zero_shot_record
from tuning.results.goal import Goal

QUANTILE: Final = NormalDist().inv_cdf(0.975)
"""Half-width of a 95 % interval in standard deviations of a normal distribution."""
_SEVERAL: Final = 3
_ON_BOUND: Final = 0.001
"""Share of a range, on its scale, that counts as its end."""
Measure: TypeAlias = Callable[[TrialRecord], Any]
"""What a rule compares trials by, more is better; None for a trial that it cannot compare."""


def best_trial(goal: Goal, records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The trial with the best objective at its last step; the earlier one of equal trials.

    The last step is used instead of the best step of the curve, because the best of many noisy
    evaluations is optimistic, more so for trials that evaluate more often. Only finished trials
    that meet the constraints are compared; if no trial meets them, those with the smallest sum of
    violations. If no trial finished, the trials that got furthest are compared, since values at
    different steps are not comparable. References, failed trials and objectives that are not finite
    never win. Several objectives are compared as in `by_objectives`.
    """
    pool = contenders(goal, list(records), goal.values)
    return next(iter(by_objectives(goal, pool)), None)


def by_objectives(goal: Goal, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Trials by their objectives, best first; trials without a finite objective come last.

    With several objectives, trials are ranked by Pareto layers (the front, then the front of the
    rest, and so on), and within a layer by the distance to the best value of each objective. The
    objectives are scaled to their range in the layer, so their units (accuracy in percent, negative
    log-likelihood) have no influence. The best trial depends on the trials of the front alone.
    """
    ordered = sorted(records, key=lambda record: record.number)
    valued = [(record, v) for record in ordered if (v := goal.values(record)) is not None]
    rest = [record for record in ordered if goal.values(record) is None]
    if len(goal.objectives) == 1:
        return [record for record, _ in sorted(valued, key=lambda pair: -pair[1][0])] + rest
    found: list[TrialRecord] = []
    while valued:
        front = set(non_dominated([values for _, values in valued]))
        layer = [pair for index, pair in enumerate(valued) if index in front]
        distances = distances_to_ideal([values for _, values in layer])
        pairs = sorted(zip(distances, layer, strict=True), key=lambda pair: pair[0])
        found += [record for _, (record, _) in pairs]
        valued = [pair for index, pair in enumerate(valued) if index not in front]
    return found + rest


def pareto_front(goal: Goal, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The trials, among those that can be chosen, that no other one beats in all objectives."""
    pool = contenders(goal, list(records), goal.values)
    return [pool[index] for index in non_dominated([goal.values(r) or () for r in pool])]


def misses(goal: Goal, records: Iterable[TrialRecord]) -> dict[str, dict[str, float]]:
    """Trial id -> constraint -> amount by which the trial misses it; inf if it has no value."""
    trials = [record for record in records if record.kind == "trial"]
    bests = goal.bests(trials)
    return {
        record.trial_id: {t: v for t, v in goal.violations(record, bests).items() if v > 0}
        for record in trials
    }


def ranked(goal: Goal, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """All trials without references, best first.

    Finished trials come first, then the others by step, then failed ones. Within these groups,
    trials are ordered by the sum of their violations of the constraints, then `by_objectives`.
    """
    trials = [record for record in records if record.kind == "trial"]
    missed = misses(goal, trials)
    groups: dict[tuple[int, int, float], list[TrialRecord]] = {}
    for record in trials:
        group = {"finished": 0, "failed": 2}.get(record.outcome, 1)
        key = group, -record.step if group else 0, sum(missed[record.trial_id].values())
        groups.setdefault(key, []).append(record)
    return [record for key in sorted(groups) for record in by_objectives(goal, groups[key])]


def finished_trials(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The trials that have done all their steps, without references."""
    return [r for r in records if r.kind == "trial" and r.outcome == "finished"]


def first_trial(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The trial that a search began with, once it has finished; None if a sampler proposed it."""
    found = finished_trials(records)
    return next((r for r in found if r.number == 0 and r.is_first_point), None)


def finished_references(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The references that have done all their steps."""
    return [r for r in records if r.kind == "reference" and r.outcome == "finished"]


def references(goal: Goal, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """What trials are compared with: the finished references, and last the zero-shot model."""
    return [*finished_references(records), zero_shot_record(goal.zero_shot)]


def stronger_reference(goal: Goal, records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The zero-shot model or the finished reference that beats every trial; None if a trial wins.

    It meets the constraints, and is better in the objective, unless no trial meets them. With
    several objectives, it is as good as every trial in all of them, and better in one. None before
    a trial has finished.
    """
    front = pareto_front(goal, records)
    if not front or front[0].outcome != "finished":
        return None
    # All trials of the front miss the constraints by the same amount.
    compared = [] if misses(goal, records)[front[0].trial_id] else front
    best = [values for record in compared if (values := goal.values(record)) is not None]
    bests = goal.bests(records)
    stronger = [
        (values, record)
        for record in references(goal, records)
        if (values := goal.values(record)) is not None
        and all(values != own and all(map(operator.ge, values, own)) for own in best)
        and all(amount <= 0 for amount in goal.violations(record, bests).values())
    ]
    return max(stronger, key=lambda pair: pair[0], default=((), None))[1]


def contenders(goal: Goal, records: Sequence[TrialRecord], measure: Measure) -> list[TrialRecord]:
    """The trials that a rule chooses among: finished, measured, within the constraints.

    If there is none, the trials that come closest to that, as described in `best_trial`.
    """
    pool = comparable(records, measure)
    missed = {name: sum(by.values()) for name, by in misses(goal, records).items()}
    least = min((missed[r.trial_id] for r in pool), default=0.0)
    return [r for r in pool if missed[r.trial_id] == least]


def comparable(records: Sequence[TrialRecord], measure: Measure) -> list[TrialRecord]:
    """The measured trials that finished; if none has, those that got furthest."""
    alive = [r for r in records if r.kind == "trial" and r.outcome != "failed"]
    alive = [r for r in alive if measure(r) is not None]
    pool = [r for r in alive if r.outcome == "finished"]
    if not pool:
        furthest = max((r.step for r in alive), default=0)
        pool = [r for r in alive if r.step == furthest]
    return pool


def non_dominated(points: Sequence[tuple[float, ...]]) -> list[int]:
    """The indices of the Pareto front: no other point is as good in all and better in one value."""

    def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a != b and all(map(operator.ge, a, b))

    return [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]


def distances_to_ideal(points: Sequence[tuple[float, ...]]) -> list[float]:
    """Euclidean distance of each point to the best value of every objective.

    Each objective is scaled to its range over these points, so its unit has no influence.
    """
    columns = list(zip(*points, strict=True))
    best = [max(column) for column in columns]
    scales = [max(column) - min(column) or 1.0 for column in columns]
    return [
        math.hypot(*((b - v) / s for b, v, s in zip(best, point, scales, strict=True)))
        for point in points
    ]


def on_bounds(spaces: Spaces, records: Iterable[TrialRecord]) -> list[str]:
    """A line for each end of a range on which three or more proposals of the sampler sit."""
    proposed = [r for r in records if r.kind == "trial" and not r.is_first_point]
    lines = []
    for method, part in spaces.items():
        own = [r.params for r in proposed if r.params.get(METHOD_KEY) == method]
        for key, parameter in part.parameters.items():
            if not isinstance(parameter, Float):
                continue
            places = [parameter.unit(float(params[key])) for params in own if key in params]
            for name, bound, end in (("lowest", parameter.low, 0), ("highest", parameter.high, 1)):
                count = sum(abs(place - end) < _ON_BOUND for place in places)
                if count >= _SEVERAL:
                    of = "" if method is None else f" of {method}"
                    what = f"{count} of {len(places)} proposals are at the {name} value, {bound:g}"
                    lines.append(f"{key}{of}: {what}")
    return lines


def accuracy_margin(acc: float, images: int) -> float:
    """Half the 95 % interval (Wilson's) of an accuracy in percent on that many images, in points.

    Not with scipy, whose import takes longer than the commands that show it.
    """
    z, share = QUANTILE, acc / 100
    spread = math.sqrt(share * (1 - share) / images + (z / (2 * images)) ** 2)
    return 100 * z * spread / (1 + z**2 / images)
