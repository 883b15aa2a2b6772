import math
from dataclasses import replace
from itertools import permutations

import pytest
from scipy.stats import spearmanr

from tests.tuning import fakes
from tuning.algorithms.early_stopping import Asha
from tuning.algorithms.rung_check import (
    CheckedRule,
    create_rule,
    describe_checks,
    interval,
    search_rule,
)
from tuning.config.schema import AshaConfig, MedianConfig
from tuning.runs.records import STEP

RUNG, LAST = 30, 90
METRIC = "val/mean_acc"
AGREES = [(1.0, 11.0), (2.0, 12.0), (3.0, 13.0), (4.0, 14.0)]
"""Values at the rung and at the end of each trial."""
TURNED = [(4.0, 11.0), (3.0, 12.0), (2.0, 13.0), (1.0, 14.0)]


def checked(curves, trials=4):
    """A rule that has seen those trials, one after the other."""
    rule = CheckedRule(Asha((RUNG,), 2), LAST, trials, min_correlation=0.4)
    for number, (early, final) in enumerate(curves):
        assert rule.should_continue(number, RUNG, (early,))
        end(rule, number, final)
    return rule


def end(rule, number, final):
    rule.should_continue(number, LAST, (final,))
    rule.finish(number, (final,))


def rung_checks(search, records):
    rule = search_rule(search)
    rule.replay(records)
    return rule.checks()


@pytest.mark.parametrize(("curves", "stops"), [(AGREES, True), (TURNED, False)])
def test_a_rung_stops_trials_only_if_it_ranks_as_the_end_does(curves, stops):
    rule = checked(curves)
    assert rule.is_decided
    assert rule.should_continue(10, RUNG, (0.5,)) != stops
    assert rule.should_continue(11, RUNG, (9.0,))  # the best so far
    check = rule.check(RUNG)
    assert (check.step, check.trials, check.stops) == (RUNG, 4, stops)
    assert check.correlation == pytest.approx(1.0 if stops else -1.0)


def test_no_trial_is_stopped_before_enough_have_ended():
    rule = checked(AGREES[:3])
    running = range(10, 20)  # side by side with the fourth
    assert all(rule.should_continue(number, RUNG, (-float(number),)) for number in running)
    end(rule, 10, -5.0)
    assert rule.is_decided
    assert rule.check(RUNG).trials == 4
    assert not rule.should_continue(20, RUNG, (-99.0,))


def test_a_value_that_is_not_finite_stops_a_trial_before_the_check():
    rule = checked(AGREES[:1])
    assert not rule.should_continue(5, RUNG, None)
    assert not rule.is_decided


@pytest.mark.parametrize("one_for_all", [False, True])
def test_the_correlation_is_spearmans_and_of_several_objectives_the_lowest(one_for_all):
    early, final = [3.0, 1.0, 4.0, 1.5, 5.0], [2.0, 7.0, 1.0, 8.0, 2.5]
    other = [1.0, 2.0, 3.0, 4.0, 5.0]
    rule = CheckedRule(Asha((RUNG,), 2), LAST, 5, 0.4)
    for number in range(5):
        values = (early[number],) if one_for_all else (early[number], other[number])
        rule.should_continue(number, RUNG, values)
        rule.finish(number, (final[number], other[number]))
    assert rule.check(RUNG).correlation == pytest.approx(spearmanr(early, final).statistic)


@pytest.mark.parametrize(("trials", "percent"), [(3, 50), (4, 21), (6, 21)])
def test_a_rung_that_knows_nothing_passes_as_often_as_documented(trials, percent):
    orders = [[(float(n), 10.0 + m) for m, n in enumerate(o)] for o in permutations(range(trials))]
    passed = [checked(order, trials).check(RUNG).stops for order in orders]
    assert round(100 * sum(passed) / len(orders)) == percent


def test_equal_values_predict_nothing():
    rule = checked([(1.0, float(final)) for final in range(4)])
    assert math.isnan(rule.check(RUNG).correlation)
    said = f"step {RUNG}: undefined (all values were equal) in 4 trials; stops no trial"
    assert str(rule.check(RUNG)) == said
    assert rule.should_continue(9, RUNG, (0.0,))


def test_the_interval_has_the_stated_standard_error():
    low, high = interval(0.5, 28)
    error = math.sqrt((1 + 0.5**2 / 2) / 25)
    assert math.atanh(high) - math.atanh(low) == pytest.approx(2 * 1.96 * error)
    assert low < 0.5 < high
    assert interval(0.5, 3) == (-1, 1)
    low, high = interval(1.0, 6)
    assert 0 < low < 0.9 < high < 1


@pytest.mark.parametrize(
    ("check_trials", "trials", "kind", "needed"),
    [
        (6, 20, CheckedRule, 6),
        (6, 8, CheckedRule, 4),
        (6, 5, type(None), 0),  # half of it is too few to know
        (0, 20, Asha, 0),
        (6, None, Asha, 0),
    ],
)
def test_half_of_the_budget_at_most_runs_to_its_end(check_trials, trials, kind, needed):
    rule = create_rule(AshaConfig(grace_steps=RUNG, check_trials=check_trials), LAST, trials)
    assert type(rule) is kind
    if isinstance(rule, CheckedRule):
        for number in range(needed):
            assert not rule.is_decided
            end(rule, number, 1.0)
        assert rule.is_decided


@pytest.mark.parametrize(
    ("steps", "every", "first"),
    [
        (120, 40, 80),
        (5000, 1000, 3000),
        (25030, 2503, 15018),
        (100, 70, 70),
        (40, 40, 40),
        (60, 500, 60),
        (1, 1, 1),
    ],
)
def test_the_first_step_is_two_thirds_down_to_an_evaluation(steps, every, first):
    assert AshaConfig().first_step(steps, every) == first


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_by_default_a_search_stops_trials_from_two_thirds_on(tmp_path, name):
    scheduler = {"name": name, "check_trials": 0}
    config = {"trial": {"eval": {"every": 40}}, "search": {"scheduler": scheduler}}
    rule = search_rule(fakes.search_record(tmp_path, config=config, total_steps=120))
    for step in (40, 80):
        reports = [{STEP: step, METRIC: -float(number)} for number in range(20)]
        go_on = [rule.should_continue(n, {}, report) for n, report in enumerate(reports)]
        assert all(go_on) == (step < 80)


def record(number, *values, **changes):
    curve = tuple({STEP: RUNG * (i + 1), METRIC: value} for i, value in enumerate(values))
    return fakes.trial(number, curve=curve, **changes)


@pytest.fixture
def search(tmp_path):
    config = {"search": {"scheduler": {"name": "asha", "grace_steps": RUNG}}}
    return fakes.search_record(tmp_path, config=config, total_steps=LAST)  # a budget of 16


def test_the_checks_of_a_search_follow_from_its_records(search):
    finals = [5.0, 6.0, 1.0, 2.0, 4.0, 3.0]
    records = [record(n, value, -value, value) for n, value in enumerate(finals)]
    assert rung_checks(search, records[:5]) == {}
    late = record(6, 9.0, 9.0, 0.0)  # it ended after the check
    (of_all,) = rung_checks(search, [late, *reversed(records)]).values()
    (check,) = of_all  # of a ladder with factor 3 below 90 steps: 30 alone
    assert (check.step, check.trials, check.correlation) == (RUNG, 6, 1)
    (line,) = describe_checks(search, records)
    assert line.startswith(f"Rank correlation of {METRIC} with the final {METRIC}, step 30: 1.00 [")
    assert line.endswith("in 6 trials; may stop: above 0.4")


def test_the_metric_of_the_sampler_is_checked_against_the_objective(search):
    search = replace(search, sampler_metric="auto")
    records = [record(n, -n, 0.0, float(n)) for n in range(6)]
    nlls = [2.0, 3.0, 4.0, 1.5, 1.0, 0.5]  # at the rung; less is better
    records = [
        replace(r, curve=tuple({**point, "val/mean_nll": nll} for point in r.curve))
        for r, nll in zip(records, nlls, strict=True)
    ]
    ((check,),) = rung_checks(search, records).values()
    assert check.correlation == pytest.approx(spearmanr(nlls, range(6)).statistic * -1)
    assert (
        "of val/mean_nll with the final val/mean_acc, step 30"
        in describe_checks(search, records)[0]
    )
    rule = search_rule(search)
    rule.replay(records)

    def goes_on(number, accuracy, nll):
        return rule.should_continue(number, {}, {STEP: 30, METRIC: accuracy, "val/mean_nll": nll})

    assert goes_on(6, 0.0, 0.4)
    assert not goes_on(7, 99.0, 5.0)
    assert not goes_on(8, math.nan, 0.1)


def test_a_trial_without_a_finite_nll_decides_no_check(search):
    search = replace(search, sampler_metric="auto")
    records = [
        replace(r, curve=tuple({**point, "val/mean_nll": -point[METRIC]} for point in r.curve))
        for r in (record(n, float(n), 0.0, float(n)) for n in range(4))
    ]
    diverged = replace(record(4, 1.0), outcome="pruned")
    diverged = replace(diverged, curve=({**diverged.curve[0], "val/mean_nll": math.inf},))
    assert rung_checks(search, [*records, diverged]) == {}  # the budget asks for 6 trials


def test_a_check_that_proves_little_says_so():
    few = str(checked([(e, 11.0 + n) for n, e in enumerate([1.0, 3.0, 2.0, 4.0])]).check(RUNG))
    assert few.startswith(f"step {RUNG}: 0.80 [-0.82, 1.00] in 4 trials; may stop: above 0.4, ")
    assert few.endswith("though lower values are not ruled out")


def test_a_larger_budget_leaves_the_check_as_it_was(search):
    agree = [record(n, float(n), 0.0, float(n)) for n in range(4)]
    weak = replace(record(4, -1.0), outcome="pruned")
    survivors = [record(n, float(n), 0.0, float(-n)) for n in range(5, 9)]
    records = [replace(r, ended_at=1.0 + r.number) for r in (*agree, weak, *survivors)]
    small, large = (replace(search, budget_trials=budget) for budget in (8, 16))
    before = rung_checks(small, records)
    (check,) = before[None]
    assert (check.trials, check.correlation) == (4, 1)
    assert rung_checks(large, records) == before
    # A trial that had no finite value was stopped without a check.
    nan = replace(weak, curve=({STEP: RUNG, METRIC: math.nan},))
    (later,) = rung_checks(large, [*records[:4], nan, *records[5:]])[None]
    assert later.trials == 6


def test_trials_without_a_method_are_of_the_configured_one(search):
    search = replace(search, config={**search.config, "trial": {"method": {"name": "kd"}}})
    named = {"params": {"method.name": "kd", "optim.lr": 1e-5}}
    records = [record(n, float(n), 0.0, float(n), **(named if n % 2 else {})) for n in range(6)]
    assert [(m, c.trials) for m, (c,) in rung_checks(search, records).items()] == [("kd", 6)]


def test_each_method_has_a_check_of_its_own(search):
    settings = {
        "scheduler": MedianConfig(grace_steps=60).model_dump(),
        "space": {"methods": ["ft", "kd"]},
    }
    search = replace(search, config={"search": settings})
    records = []
    for number in range(8):
        method = ("ft", "kd")[number % 2]
        early = number if method == "ft" else -number
        changes = {"params": {"method.name": method, "optim.lr": 1e-5}}
        records.append(record(number, 0.0, float(early), float(number), **changes))
    found = rung_checks(search, records)
    assert {m: [c.step for c in checks] for m, checks in found.items()} == {"ft": [60], "kd": [60]}
    assert {m: checks[0].stops for m, checks in found.items()} == {"ft": True, "kd": False}


def test_without_a_scheduler_there_is_nothing_to_check(search):
    records = [record(number, 1.0, 2.0, 3.0) for number in range(9)]
    for settings in ({}, {"search": {"scheduler": {"name": "none"}}}):
        assert rung_checks(replace(search, config=settings), records) == {}
