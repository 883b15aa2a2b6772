import math
from dataclasses import replace

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from tests.tuning.fakes import trial as trial_record
from tuning.algorithms.early_stopping import Asha, Hyperband, MedianRule
from tuning.algorithms.rung_check import SearchRule, create_rule
from tuning.algorithms.tune_scheduler import StepScheduler
from tuning.config.objectives import Objective
from tuning.config.schema import (
    AshaConfig,
    HyperbandConfig,
    MedianConfig,
    NoSchedulerConfig,
)
from tuning.runs.records import METHOD_KEY, STEP

METRIC = "val/mean_acc"
OBJECTIVES = (Objective(METRIC),)
TOTAL_STEPS = 90
ASHA = AshaConfig(grace_steps=30, reduction_factor=2)
CONTROLLER = None
"""Which this scheduler does not ask for anything."""


def scheduler(
    config=ASHA,
    objectives=OBJECTIVES,
    earlier=(),
    method=None,
    trials=None,
    announce=lambda line: None,
):
    rule = SearchRule(config, objectives, TOTAL_STEPS, trials, method)
    return StepScheduler(rule, TOTAL_STEPS, earlier, announce)


def tune_trial(number, method=None):
    params = {METHOD_KEY: method} if method else {}
    config = {"trial_id": f"trial-{number:03d}", "params": params}
    return Trial("none", config=config, trial_id=f"{number + 7:08x}", stub=True)


def goes_on(scheduler, trial, step, *values):
    """Whether it does after that report; values of the metric, then of `id_val/acc`."""
    metrics = dict(zip((METRIC, "id_val/acc"), values, strict=False))
    result = {STEP: step, "training_iteration": 1, **metrics}
    decision = scheduler.on_trial_result(CONTROLLER, trial, result)
    assert decision in (TrialScheduler.CONTINUE, TrialScheduler.STOP)
    return decision == TrialScheduler.CONTINUE


def test_rungs_count_steps_and_not_reports():
    s = scheduler()
    assert goes_on(s, tune_trial(0), 30, 50.0)
    late = tune_trial(1)
    for step in (10, 20, 29):
        assert goes_on(s, late, step, 10.0)
    assert not goes_on(s, late, 30, 10.0)


@pytest.mark.parametrize("step", [30, 90, 120])
def test_a_reference_is_never_stopped_and_moves_no_rung(step):
    s = scheduler()
    reference = Trial("none", config={"trial_id": "ft", "params": {}}, stub=True)
    assert goes_on(s, reference, step, 99.0)
    assert goes_on(s, tune_trial(0), 30, 1.0)
    assert goes_on(s, tune_trial(1), 30, 2.0)
    assert goes_on(s, reference, step, 0.0)
    assert goes_on(s, reference, step, math.nan)


@pytest.mark.parametrize("value", [10.0, math.nan])
@pytest.mark.parametrize("config", [ASHA, MedianConfig(grace_steps=30, min_trials=1)])
def test_a_trial_at_its_last_step_is_left_to_end_by_itself(config, value):
    s = scheduler(config)
    for step in (30, 60, 90):
        assert goes_on(s, tune_trial(0), step, 50.0)
    assert goes_on(s, tune_trial(1), TOTAL_STEPS, value)
    assert not goes_on(s, tune_trial(2), 60, value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_stops_a_trial_at_its_rung(value):
    s = scheduler()
    assert goes_on(s, tune_trial(0), 20, value)
    assert not goes_on(s, tune_trial(0), 30, value)
    assert goes_on(s, tune_trial(1), 30, 1.0)


def test_a_missing_objective_is_as_bad_as_one_that_is_not_finite():
    s = scheduler(objectives=[Objective(METRIC), Objective("id_val/acc")])
    assert not goes_on(s, tune_trial(0), 30, 99.0)
    assert goes_on(s, tune_trial(1), 30, 1.0, 1.0)


def test_a_result_without_a_step_is_let_be():
    s = scheduler()
    assert s.on_trial_result(CONTROLLER, tune_trial(0), {METRIC: 1.0}) == TrialScheduler.CONTINUE


def record(number, *values):
    curve = tuple({STEP: 30 * (i + 1), METRIC: value} for i, value in enumerate(values))
    return trial_record(number, curve=curve)


def test_the_rungs_of_earlier_sessions_are_known_after_a_resume():
    before, curves = scheduler(), {0: (50.0, 55.0), 1: (60.0, 52.0), 2: (40.0,), 3: (45.0,)}
    for number, values in curves.items():
        for index, value in enumerate(values):
            goes_on(before, tune_trial(number), 30 * (index + 1), value)
    reference = replace(record(-1, 99.0), trial_id="ft", kind="reference")  # moves no rung
    records = [reference, *(record(number, *values) for number, values in curves.items())]
    after = scheduler(earlier=records)
    reports = [(4, 30, 55.0), (4, 60, 53.0), (1, 90, 70.0), (5, 30, 54.0), (6, 30, 61.0)]
    decisions = [
        [goes_on(s, tune_trial(number), step, value) for number, step, value in reports]
        for s in (before, after)
    ]
    assert decisions[0] == decisions[1]
    assert set(decisions[0]) == {True, False}


@pytest.mark.parametrize("value", [1.0, 70.0])
def test_a_stopped_trial_is_compared_when_it_repeats_its_last_report(value):
    """A killed driver has not seen that report; it was found in a checkpoint."""
    others = [record(number, 50.0 + number, 60.0, 70.0) for number in range(4)]
    uninterrupted = scheduler(earlier=others)
    resumed = scheduler(earlier=[*others, replace(record(4, value), outcome="stopped")])
    for s in (uninterrupted, resumed):
        assert goes_on(s, tune_trial(4), 30, value) == (value == 70.0)
        assert goes_on(s, tune_trial(5), 30, 51.5) == (value == 1.0)  # third or fourth of six


def test_after_a_resume_each_method_hears_of_its_own_curves():
    unnamed = [replace(record(0, 50.0), params={"optim.lr": 1e-4})]
    named = [
        replace(record(n, value), params={METHOD_KEY: "kd"}) for n, value in ((1, 5.0), (2, 6.0))
    ]
    s = scheduler(earlier=[*unnamed, *named], method="ft")
    assert not goes_on(s, tune_trial(3, "kd"), 30, 5.5)  # of three one goes on: 6
    assert not goes_on(s, tune_trial(4, "ft"), 30, 49.0)  # second of two
    assert goes_on(s, tune_trial(5, "l2_sp"), 30, 1.0)  # the first of its own
    assert not goes_on(s, tune_trial(6), 30, 49.0)


def test_without_a_rule_every_trial_runs_to_its_end():
    s = scheduler(NoSchedulerConfig())
    assert all(goes_on(s, tune_trial(i), 30, float(-i)) for i in range(5))
    assert goes_on(s, tune_trial(5), 30, math.nan)


def test_a_configuration_makes_its_rule():
    asha = create_rule(AshaConfig(grace_steps=10, reduction_factor=3), TOTAL_STEPS)
    hyperband = create_rule(HyperbandConfig(grace_steps=10, brackets=9), TOTAL_STEPS)
    median = create_rule(MedianConfig(grace_steps=10, min_trials=2), TOTAL_STEPS)
    assert isinstance(asha, Asha)
    assert isinstance(hyperband, Hyperband)
    assert isinstance(median, MedianRule)
    assert (asha.rungs, asha.reduction_factor) == ((10, 30), 3)
    assert (median.grace_steps, median.min_trials) == (10, 2)
    assert create_rule(NoSchedulerConfig(), TOTAL_STEPS) is None


def test_a_check_is_announced_once_and_holds_after_a_resume():
    lines = []
    first = scheduler(trials=8, announce=lines.append)  # four run to their end
    curves = {number: (50.0 - number, 60.0, 50.0 + number) for number in range(4)}
    for number, (early, later, final) in curves.items():
        assert goes_on(first, tune_trial(number), 30, early)
        assert goes_on(first, tune_trial(number), 60, later)
        # Tune brings a report that is the last one with the end of the trial.
        first.on_trial_complete(CONTROLLER, tune_trial(number), {STEP: 90, METRIC: final})
    assert lines[0] == "Stopping    asha, once 4 trials have run to their end"
    assert lines[1].startswith(
        f"Rank correlation of {METRIC} with the final {METRIC}, step 30: -1.00"
    )
    assert lines[1].endswith("stops no trial")
    announced = len(lines)
    records = [record(number, *values) for number, values in curves.items()]
    second = scheduler(trials=8, announce=lines.append, earlier=reversed(records))
    for s in (first, second):
        assert goes_on(s, tune_trial(8), 30, 0.0)
    assert lines[announced:] == ["Stopping    asha, checked in an earlier session"]
