from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import pytest

from tuning.algorithms.early_stopping import (
    Asha,
    Hyperband,
    MedianRule,
    Values,
    non_dominated,
    rung_ladder,
)

Report: TypeAlias = tuple[int, int, Values | None]
"""Trial, step, values."""

RUNGS = (10, 20, 40)


def reports(seed, trials, objectives=1, missing=0.0):
    """Trials of random curves that report every 10 to 30 steps up to 60, in a random order.

    Values are whole numbers from a short range, so that there are ties.
    """
    rng = random.Random(seed)
    waiting = dict.fromkeys(range(trials), 0)
    found = []
    while waiting:
        number = rng.choice(list(waiting))
        waiting[number] = min(60, waiting[number] + rng.choice((10, 10, 20, 30)))
        values = tuple(float(rng.randint(0, 20)) for _ in range(objectives))
        found.append((number, waiting[number], None if rng.random() < missing else values))
        if waiting[number] == 60:
            del waiting[number]
    return found


def obeyed(rule, told):
    """What the rule says to those reports, of trials that stop when they are told to."""
    answers = []
    stopped = set()
    for number, step, values in told:
        if number not in stopped:
            keeps = rule.should_continue(number, step, values)
            answers.append(((number, step, values), keeps))
            if not keeps:
                stopped.add(number)
    return answers


def layers(points):
    """Peels off one front after another, point by point."""
    found = []
    while points:
        front = [
            p
            for p in points
            if not any(
                all(a >= b for a, b in zip(q, p, strict=True))
                and any(a > b for a, b in zip(q, p, strict=True))
                for q in points
            )
        ]
        found.append(front)
        points = [p for p in points if p not in front]
    return found


def better_than(values, points):
    """How many rank before it, by brute force: the layer, then the scaled distance within it."""
    rank = {}
    for index, layer in enumerate(layers(points)):
        array = np.array(layer)
        spread = np.ptp(array, axis=0)
        scaled = (array.max(axis=0) - array) / np.where(spread == 0, 1, spread)
        distances = np.linalg.norm(scaled, axis=1).round(12)
        rank |= {p: (index, float(d)) for p, d in zip(layer, distances, strict=True)}
    return sum(rank[p] < rank[values] for p in points)


def asha_by_brute_force(told, rungs, factor):
    """Looks at all reports before each, and at which trials have gone past each rung."""
    answers = []
    heard = []
    stopped = set()
    for number, step, values in told:
        if number in stopped:
            continue
        before = max((s for n, s, _ in heard if n == number), default=0)
        heard.append((number, step, values))
        passed = [rung for rung in rungs if before < rung <= step]
        keeps = True
        if passed:
            arrivals = {}
            for n, s, v in heard:  # the first report at or after the rung counts
                if s >= passed[-1]:
                    arrivals.setdefault(n, v)
            points = [v for v in arrivals.values() if v is not None]
            places = max(1, math.floor(len(arrivals) / factor))
            keeps = values is not None and better_than(values, points) < places
        answers.append(keeps)
        if not keeps:
            stopped.add(number)
    return answers


@pytest.mark.parametrize(
    ("grace", "factor", "total", "rungs"),
    [
        (10, 3, 270, [10, 30, 90]),
        (10, 3, 271, [10, 30, 90, 270]),
        (40, 3, 120, [40]),
        (120, 3, 120, []),
        (10, 1.5, 40, [10, 15, 22, 34]),  # 22.5 and 33.75 are rounded
        (2, 1.2, 8, [2, 3, 4, 5, 6, 7]),  # 2, 2.4, 2.88, 3.46, ...: each step once
        (1, 1.01, 4, [1, 2, 3]),
    ],
)
def test_rungs_rise_by_the_factor_and_end_below_the_last_step(grace, factor, total, rungs):
    assert rung_ladder(grace, factor, total) == rungs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("objectives", "factor"), [(1, 1.5), (1, 2), (1, 3), (1, 4), (2, 2), (3, 2)]
)
def test_asha_decides_as_brute_force_does(seed, objectives, factor):
    told = reports(seed, trials=30, objectives=objectives, missing=0.1)
    answers = [keeps for _, keeps in obeyed(Asha(RUNGS, factor), told)]
    assert answers == asha_by_brute_force(told, RUNGS, factor)
    assert answers.count(False) > 5


def test_a_trial_is_compared_at_a_rung_once():
    rule = Asha([10], 2)
    assert rule.should_continue(0, 10, (9.0,))
    assert not rule.should_continue(1, 10, (1.0,))
    assert rule.should_continue(0, 10, (0.0,))  # reported again, after a resume
    assert rule.should_continue(0, 30, (0.0,))
    assert not rule.should_continue(2, 10, (5.0,))  # 9, and not 0, is what it was compared with


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize(
    "create",
    [
        lambda: Asha(RUNGS, 2),
        lambda: Hyperband(RUNGS, 2, brackets=3),
        lambda: MedianRule(grace_steps=20, min_trials=3),
    ],
    ids=["asha", "hyperband", "median"],
)
def test_hearing_the_recorded_curves_again_brings_a_rule_to_the_same_decisions(
    create, objectives, seed
):
    told = reports(seed, trials=40, objectives=objectives, missing=0.02)
    whole = obeyed(create(), told)
    half = len(whole) // 2
    assert {keeps for _, keeps in whole[half:]} == {True, False}
    again = create()
    curves = sorted(report for report, _ in whole[:half] if report[2] is not None)
    curves += [report for report, _ in whole[:half] if report[2] is None]
    for number, step, values in curves:  # trial by trial, as they are recorded
        again.should_continue(number, step, values)
    assert [again.should_continue(*report) for report, _ in whole[half:]] == [
        k for _, k in whole[half:]
    ]


def test_brackets_start_a_rung_later_each_and_get_e_times_fewer_trials():
    rule = Hyperband(RUNGS, 2, brackets=3)
    for number in range(4000):
        rule.should_continue(number, 60, (0.0,))
    assert [bracket.rungs for bracket in rule._brackets] == [(10, 20, 40), (20, 40), (40,)]
    sizes = [len(bracket._reached[40]) for bracket in rule._brackets]
    for larger, smaller in pairwise(sizes):
        assert larger / smaller == pytest.approx(math.e, rel=0.15)


def test_each_bracket_decides_by_its_own_trials_alone():
    told = reports(1, trials=60)
    rule = Hyperband(RUNGS, 2, brackets=3)
    answers = obeyed(rule, told)
    stops = 0
    for bracket in rule._brackets:
        members = {number for number in range(60) if number in bracket._reached[bracket.rungs[0]]}
        theirs = [report for report in told if report[0] in members]
        mine = [keeps for report, keeps in answers if report[0] in members]
        assert mine == asha_by_brute_force(theirs, bracket.rungs, 2)
        stops += mine.count(False)
    assert stops == sum(not keeps for _, keeps in answers) > 5


@pytest.mark.parametrize(("rungs", "brackets"), [((), 3), ((10,), 3), (RUNGS, 1)])
def test_there_are_no_more_brackets_than_rungs_but_one(rungs, brackets):
    rule = Hyperband(rungs, 2, brackets)
    assert len(rule._brackets) == 1
    assert rule.should_continue(0, 60, (1.0,))


def test_a_trial_stops_where_its_best_is_below_the_median_of_the_others_running_means():
    rule = MedianRule(grace_steps=20, min_trials=3)
    for number, (early, late) in enumerate([(2.0, 4.0), (4.0, 6.0), (6.0, 8.0)]):
        assert rule.should_continue(number, 10, (early,))
        assert rule.should_continue(number, 20, (late,))  # fewer than three others so far
    # Their running means at step 20 are 3, 5 and 7: the median is 5.
    assert rule.should_continue(3, 10, (0.0,))  # within the grace
    assert not rule.should_continue(3, 20, (4.9,))
    assert rule.should_continue(4, 10, (5.0,))
    assert rule.should_continue(4, 20, (0.0,))  # its best is what counts


def test_the_median_rule_hears_only_of_trials_that_came_as_far_and_of_steps_up_to_there():
    rule = MedianRule(grace_steps=10, min_trials=2)
    rule.should_continue(0, 10, (1.0,))
    rule.should_continue(0, 20, (99.0,))  # later than the step that is looked at
    rule.should_continue(1, 10, (3.0,))
    rule.should_continue(2, 5, (99.0,))  # has not come as far
    rule.should_continue(6, 5, None)
    rule.should_continue(6, 20, (99.0,))  # had no value up to there
    assert rule.should_continue(3, 10, (2.0,))  # the median of 1 and 3
    assert not rule.should_continue(4, 10, (1.9,))
    rule.should_continue(5, 20, (99.0,))
    assert not rule.should_continue(5, 10, (1.5,))  # again from an earlier checkpoint


def test_a_trial_goes_on_where_one_of_several_objectives_is_as_good_as_the_median():
    rule = MedianRule(grace_steps=10, min_trials=2)
    rule.should_continue(0, 10, (1.0, 5.0))
    rule.should_continue(1, 10, (3.0, 7.0))
    assert rule.should_continue(2, 10, (2.0, 0.0))
    assert not rule.should_continue(3, 10, (1.9, 4.9))  # the medians of three are 2 and 5


def test_no_value_ends_a_trial_after_the_grace_of_the_median_rule():
    rule = MedianRule(grace_steps=20, min_trials=1)
    assert rule.should_continue(0, 10, None)
    assert not rule.should_continue(0, 20, None)
    assert rule.should_continue(1, 20, (1.0,))  # nobody to compare with


def test_the_front_is_what_nothing_dominates_duplicates_included():
    rng = random.Random(0)
    points = [(rng.randint(0, 9) / 2, rng.randint(0, 9) / 2) for _ in range(60)]
    front = layers(points)[0]
    assert [points[i] for i in non_dominated(points)] == front
    assert len(front) < 30
    assert non_dominated([(1.0, 2.0), (1.0, 2.0)]) == [0, 1]
