import math

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import GPSampler
from optuna.trial import TrialState

from tuning.algorithms.gp_sampler import (
    RobustGPSampler,
    compress_worse,
    final_values,
    region_around,
)

UNIT = {"x": FloatDistribution(0, 1)}


def ended(x, value, **more):
    return optuna.create_trial(params={"x": x}, distributions=UNIT, value=value, **more)


@pytest.mark.parametrize("sampler", [GPSampler, RobustGPSampler])
def test_a_pruned_point_is_not_proposed_again(sampler):
    study = optuna.create_study(sampler=sampler(seed=0, n_startup_trials=4))
    study.add_trials([ended(x, (x - 0.45) ** 2) for x in (0.05, 0.3, 0.6, 0.95)])
    proposed = []
    for _ in range(2):
        trial = study.ask(UNIT)
        proposed.append(trial.params["x"])
        study.tell(trial, state=TrialState.PRUNED)
    first, second = proposed
    assert abs(first - 0.45) < 0.05
    # Optuna 5.0's own sampler repeats itself. Once it does not, RobustGPSampler can go.
    assert (abs(second - first) < 0.01) == (sampler is GPSampler)


def test_pruned_trials_of_a_constrained_search_are_no_obstacle():
    study = optuna.create_study(sampler=RobustGPSampler(seed=0, n_startup_trials=2))
    for x in (0.1, 0.5, 0.9):
        trial = study.ask({"x": FloatDistribution(x, x)})
        study.add_trial(ended(x, x, constraints={"x >= 0.3": 0.3 - x}))
        study.tell(trial, state=TrialState.PRUNED)
    assert 0 <= study.ask(UNIT).params["x"] <= 1


@pytest.mark.parametrize(
    ("finals", "expected"),
    [
        ([1.4, 1.8, 2.2, 2.6, 90.0], 2.0),  # 2 early + 1, but for one that collapsed
        ([3.0, 2.5, 2.0, 1.5, 1.0], 2.0),  # ranked in reverse: the median
    ],
)
def test_a_pruned_trial_is_expected_where_its_last_report_points(finals, expected):
    def trial(state, reports, value=None):
        return optuna.create_trial(state=state, value=value, intermediate_values=reports)

    complete = [
        trial(TrialState.COMPLETE, {30: 9.0, 60: early}, final)
        for early, final in zip([0.2, 0.4, 0.6, 0.8, 1.0], finals, strict=True)
    ]
    pruned = [
        trial(TrialState.PRUNED, {30: 7.0, 60: 0.5}),
        trial(TrialState.PRUNED, {60: 50.0}),  # beyond those of all others
        trial(TrialState.PRUNED, {30: 9.0}),  # equal values there say nothing
        trial(TrialState.PRUNED, {45: 0.5}),  # nobody else reported there
        trial(TrialState.PRUNED, {}),
    ]
    median = sorted(finals)[2]
    beyond = max(finals) if finals[0] < finals[1] else median
    found = final_values(pruned, complete)[:, 0]
    assert found == pytest.approx([expected, beyond, median, median, median])


def test_pruned_trials_with_several_objectives_count_with_the_medians():
    complete = [
        optuna.create_trial(values=values) for values in ([1.0, 5.0], [2.0, 3.0], [9.0, 4.0])
    ]
    pruned = [optuna.create_trial(state=TrialState.PRUNED)]
    assert final_values(pruned, complete).tolist() == [[2.0, 4.0]]


def test_bad_scores_are_compressed_and_keep_their_order():
    scores = np.array([[4.0, 1.0], [3.0, 1.0], [2.0, 1.0], [1.0, 0.0], [-1000.0, 0.0]])
    found = compress_worse(scores)
    assert found[:3] == pytest.approx(scores[:3])  # median and better
    # The best is 2 above the median, so 1 below it becomes 2 log(1 + 1/2), and so on.
    assert found[3:, 0] == pytest.approx([2 - 2 * math.log(1.5), 2 - 2 * math.log(502)])
    assert found[3:, 1] == pytest.approx([0, 0])  # without a scale


@pytest.mark.parametrize("sampler", [GPSampler, RobustGPSampler])
def test_a_collapsed_training_does_not_hide_the_best_region(sampler):
    def told():
        trial = study.ask(UNIT)
        x = float(trial.params["x"])
        study.tell(trial, 1.7 + (x - 0.45) ** 2 if x < 0.8 else 9e4)
        return x

    study = optuna.create_study(sampler=sampler(seed=0, n_startup_trials=4))
    for x in (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9):
        study.enqueue_trial({"x": x})
    proposed = [told() for _ in range(10)][7:]
    # To Optuna 5.0's own sampler, the six good points look the same.
    assert (min(abs(x - 0.45) for x in proposed) < 0.01) == (sampler is RobustGPSampler)


@pytest.mark.parametrize("sampler", [GPSampler, RobustGPSampler])
def test_a_collapsed_training_does_not_hide_a_constraint(sampler):
    rng = np.random.default_rng(0)
    study = optuna.create_study(direction="maximize", sampler=sampler(seed=0, n_startup_trials=4))
    distributions = UNIT | {"y": FloatDistribution(0, 1)}
    for number in range(14):
        x, y = rng.uniform(0, 0.9), rng.uniform()
        value, violation = 50 + 8 * x, 4 * (x - 0.5) + rng.normal(0, 0.1)
        if number == 5:
            x, value, violation = 0.95, 2.0, 60.0
        study.add_trial(
            optuna.create_trial(
                params={"x": x, "y": y},
                distributions=distributions,
                values=[value],
                constraints={"x <= 0.5": violation},
            )
        )
    # To Optuna 5.0's own sampler, all others meet the constraint equally well.
    assert (study.ask(distributions).params["x"] < 0.6) == (sampler is RobustGPSampler)


@pytest.mark.parametrize(
    ("whole", "center", "part"),
    [
        (FloatDistribution(0, 10), 4.0, FloatDistribution(1.5, 6.5)),
        (FloatDistribution(0, 10), 9.0, FloatDistribution(6.5, 10)),
        (FloatDistribution(1e-6, 1e-2, log=True), 1e-4, FloatDistribution(1e-5, 1e-3, log=True)),
        (FloatDistribution(0, 1, step=0.1), 0.5, FloatDistribution(0, 1, step=0.1)),
        (IntDistribution(2, 24), 8, IntDistribution(2, 14)),
        (IntDistribution(2, 4), 3, IntDistribution(2, 4)),
        (IntDistribution(0, 100, step=10), 50, IntDistribution(20, 80, step=10)),
        (IntDistribution(1, 200, log=True), 10, IntDistribution(2, 38, log=True)),
        (CategoricalDistribution(["a", "b"]), "a", CategoricalDistribution(["a", "b"])),
    ],
)
def test_a_region_reaches_a_quarter_of_each_range_to_both_sides(whole, center, part):
    found = region_around({"x": center}, {"x": whole}, 0.25)["x"]
    assert type(found) is type(part)
    if isinstance(part, CategoricalDistribution):
        assert found == part
    else:
        low, high = pytest.approx(part.low), pytest.approx(part.high)
        assert (found.low, found.high) == (low, high)
        assert (found.log, found.step) == (part.log, part.step)


@pytest.mark.parametrize("reach", [0.2, 1.0])
def test_three_of_four_proposals_are_near_the_best_trial_that_meets_the_constraints(reach):
    """All trials are at an end of the range; that at 0.1 is better, but violates the constraint."""
    study = optuna.create_study(sampler=RobustGPSampler(seed=0, n_startup_trials=2, reach=reach))
    for x, value in ((0.06, 1.0), (0.08, 1.1), (0.1, 0.0), (0.04, 1.2)):
        study.add_trial(ended(x, value, constraints={"x <= 0.09": x - 0.09}))
    proposed = []
    for _ in range(8):
        trial = study.ask(UNIT)
        proposed.append(trial.params["x"])
        trial.set_constraint("x <= 0.09", -0.01)
        study.tell(trial, 2.0)
    far = [number for number, x in enumerate(proposed) if x > 0.06 + 0.2]
    assert set(far) == {3, 7} if reach < 1 else 0 in far


def test_without_a_trial_that_meets_the_constraints_proposals_are_anywhere():
    study = optuna.create_study(sampler=RobustGPSampler(seed=0, n_startup_trials=2, reach=0.2))
    for x in (0.0, 0.02, 0.04, 0.06):
        study.add_trial(ended(x, x, constraints={"x >= 0.5": 0.5 - x}))
    assert study.ask(UNIT).params["x"] > 0.06 + 0.2


def test_a_pruned_trial_may_be_the_best_one_outside_of_the_region():
    space = {"count": IntDistribution(8, 256, log=True), **UNIT}

    def add(count, early, violation=None):
        is_pruned = violation is None
        trial = optuna.create_trial(
            state=TrialState.PRUNED if is_pruned else TrialState.COMPLETE,
            params={"count": count, "x": 0.5},
            distributions=space,
            value=None if is_pruned else early,
            intermediate_values={1: early},
            constraints={} if is_pruned else {"limit": violation},
        )
        study.add_trial(trial)

    study = optuna.create_study(sampler=RobustGPSampler(seed=0, n_startup_trials=2, reach=0.25))
    for number in range(4):
        add(40 + number, 5.0 + number, violation=-1.0)
    add(200, 0.0, violation=1.0)
    add(250, 0.5)  # expected to meet the constraint, as most trials do
    proposed = study.ask(space).params["count"]
    assert 40 / 2.5 < proposed < 40 * 2.5
