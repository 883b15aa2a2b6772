"""The cost of a search, against sums done by hand and an independent simulation."""

import math
from dataclasses import replace
from statistics import median

import numpy as np
import pytest

from tuning.planning.cost_model import Halving, SearchShape, TrialCost, estimate, replay

EXACT = TrialCost(startup_s=10, step_s=0.5, eval_s=4)


def test_a_trial_reports_at_intervals_and_at_its_last_step():
    assert SearchShape(1, total_steps=100, eval_every=40).report_steps == (40, 80, 100)
    assert SearchShape(1, total_steps=80, eval_every=40).report_steps == (40, 80)
    assert SearchShape(1, total_steps=30, eval_every=40).report_steps == (30,)


def test_without_a_rule_the_cost_is_exact():
    shape = SearchShape(trials=5, total_steps=100, eval_every=40, concurrent=1, setup_s=7)
    one = 10 + 100 * 0.5 + 3 * 4
    found = estimate(shape, EXACT, lambda: None)
    for band, expected in (
        (found.hours, (7 + 5 * one) / 3600),
        (found.trial_hours, 5 * one / 3600),
        (found.steps, 500),
        (found.full_trials, 5),
    ):
        assert (band.low, band.median, band.high) == pytest.approx((expected,) * 3)
    assert found.reached == (5, 5, 5)


def test_start_and_end_vary_as_the_trials_do():
    shape = SearchShape(trials=1, total_steps=100, eval_every=40, setup_s=1e9)
    hours = estimate(shape, replace(EXACT, spread=0.1), lambda: None, replays=1000).hours
    assert math.log(hours.high / hours.low) == pytest.approx(2 * 1.645 * 0.1, rel=0.1)


def test_trials_fill_the_slots_and_references_come_on_top():
    shape = SearchShape(trials=4, total_steps=100, eval_every=40, concurrent=2, references=1)
    found = estimate(shape, EXACT, lambda: None)
    assert found.hours.median == pytest.approx(3 * 72 / 3600)  # five trials in two slots
    assert found.trial_hours.median == pytest.approx(5 * 72 / 3600)
    assert found.steps.median == 500
    assert found.full_trials.median == 4


def by_the_second(qualities, slots, startup, rungs, total):
    """Seconds and steps of an ASHA of factor 2 at one step a second, simulated second by second."""
    waiting, running, reached = list(range(len(qualities))), {}, {rung: [] for rung in rungs}
    second = steps = 0
    while waiting or running:
        while waiting and len(running) < slots:
            running[waiting.pop(0)] = -startup
        second += 1
        for trial in sorted(running):
            running[trial] += 1
            step = running[trial]
            steps += step > 0
            if step in rungs:
                reached[step].append(qualities[trial])
                place = sorted(reached[step], reverse=True).index(qualities[trial])
                if place >= max(1, len(reached[step]) // 2):
                    del running[trial]
            elif step == total:
                del running[trial]
    return second, steps


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 64])
def test_asha_costs_the_same_when_simulated_by_the_second(slots):
    qualities = np.random.default_rng(5).permutation(12).astype(float).tolist()
    shape = SearchShape(trials=12, total_steps=80, eval_every=10, concurrent=slots)
    played = replay(
        shape,
        TrialCost(startup_s=7, step_s=1, eval_s=0),
        [Halving((10, 20, 40), 2, 80, 0)],
        [[(quality,)] * len(shape.report_steps) for quality in qualities],
        [1.0] * 12,
    )
    seconds, steps = by_the_second(qualities, slots, 7, (10, 20, 40), 80)
    assert (played.seconds, played.steps) == (seconds, steps)
    assert played.trial_seconds == 12 * 7 + steps


def test_each_of_several_methods_has_its_own_rule():
    values = (50.0, 10.0, 30.0, 49.0, 11.0, 29.0)
    shape = SearchShape(trials=6, total_steps=20, eval_every=10)
    curves = [[(value,)] * 2 for value in values]
    played = replay(shape, EXACT, [Halving((10,), 2, 20, 0) for _ in range(3)], curves, [1.0] * 6)
    # The second of each is compared with the first of each.
    assert played.reports == (2, 2, 2, 1, 2, 1)


def test_the_spread_widens_the_band_as_a_lognormal():
    shape = SearchShape(trials=1, total_steps=100, eval_every=100)
    cost = TrialCost(startup_s=0, step_s=36, eval_s=0, spread=0.2)
    hours = estimate(shape, cost, lambda: None, replays=4000).hours
    # The common and the trial's own factor: two independent normal exponents.
    expected = [math.exp(0.2 * 2**0.5 * z) for z in (-1.645, 0, 1.645)]
    assert [hours.low, hours.median, hours.high] == pytest.approx(expected, rel=0.02)


def test_nine_in_ten_independent_searches_lie_in_the_band():
    shape = SearchShape(trials=12, total_steps=90, eval_every=30)
    cost = TrialCost(startup_s=20, step_s=1, eval_s=0, spread=0.1)
    rng = np.random.default_rng(123)
    truths = [one_slot_asha(rng) / 3600 for _ in range(400)]
    band = estimate(shape, cost, lambda: Halving((30,), 3, 90, 0)).hours
    inside = np.mean([band.low <= truth <= band.high for truth in truths])
    assert 0.8 < inside < 0.98
    assert band.median == pytest.approx(median(truths), rel=0.05)


def one_slot_asha(rng):
    """Seconds of twelve trials one after the other, rung 30 of 90 steps, factor 3, start 20 s."""
    common = math.exp(0.1 * rng.normal())
    seconds, seen = 0.0, []
    for _ in range(12):
        seen.append(rng.normal() + rng.normal() * (2 / 3))
        goes_on = sorted(seen)[-max(1, len(seen) // 3)] <= seen[-1]
        steps = 90 if goes_on else 30
        seconds += (20 + steps) * common * math.exp(0.1 * rng.normal())
    return seconds


def test_stopping_is_cheaper_and_repeatable_by_seed():
    shape = SearchShape(20, 100, 10, concurrent=4, references=1)

    def stopped(seed):
        return estimate(shape, EXACT, lambda: Halving((20, 60), 3, 100, 0), replays=20, seed=seed)

    full = estimate(shape, EXACT, lambda: None, replays=1)
    found = stopped(0)
    assert found == stopped(0)
    assert found != stopped(1)
    assert found.hours.high < full.hours.median
    reached = found.reached
    assert reached[0] == reached[1] == 20  # nothing stops before the grace steps
    assert list(reached) == sorted(reached, reverse=True)
    assert reached[-1] > 0


def test_a_rung_between_two_reports_is_seen_at_the_second():
    shape = SearchShape(trials=20, total_steps=100, eval_every=40)
    found = estimate(shape, EXACT, lambda: Halving((50,), 3, 100, 6), replays=20)
    assert found.trials_at(40) == found.trials_at(50) == found.trials_at(80) == 20
    assert found.trials_at(100) < 20
