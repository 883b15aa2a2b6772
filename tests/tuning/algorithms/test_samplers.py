from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, GridSampler, RandomSampler
from optuna.trial import TrialState

from search_spaces import Categorical, Float, Int, SearchSpace
from trainers.errors import ConfigError
from tuning.algorithms.samplers import (
    RobustGPSampler,
    check_sampler,
    clip_violations,
    compress_worse,
    final_values,
    resolve_sampler,
)
from tuning.config.schema import SamplerConfig

LR = Float(low=1e-6, high=1e-3, log=True)
NUMERIC = SearchSpace(parameters={"optim.lr": LR, "method.text_length": Int(low=2, high=24)})
FIXED = SearchSpace(parameters={"optim.lr": LR, "precision": Categorical(choices=("fp32",))})
CHOICE = SearchSpace(
    parameters={"optim.lr": LR, "precision": Categorical(choices=("fp32", "bf16"))}
)
UNIT = {"x": FloatDistribution(0, 1)}


def ended(x: float, value: float, **more: Any) -> optuna.trial.FrozenTrial:
    return optuna.create_trial(params={"x": x}, distributions=UNIT, value=value, **more)


@pytest.mark.parametrize(
    ("space", "trials", "objectives", "name", "startup_trials"),
    [
        (NUMERIC, 20, 1, "gp", 4),
        (NUMERIC, 100, 1, "gp", 4),
        (FIXED, 20, 1, "gp", 4),
        (NUMERIC, 101, 1, "tpe", 6),
        (CHOICE, 20, 1, "tpe", 6),
        (NUMERIC, 20, 2, "tpe", 6),
    ],
)
def test_auto_is_gp_for_small_searches_over_numbers(
    space: SearchSpace, trials: int, objectives: int, name: str, startup_trials: int
) -> None:
    found = resolve_sampler(SamplerConfig(), space, trials, objectives)
    assert (found.name, found.startup_trials) == (name, startup_trials)


def test_a_chosen_sampler_is_kept() -> None:
    config = SamplerConfig(name="tpe", startup_trials=9)
    assert resolve_sampler(config, NUMERIC, 20) == config


@pytest.mark.parametrize("sampler", [GPSampler, RobustGPSampler])
def test_a_pruned_point_is_not_proposed_again(sampler: type[GPSampler]) -> None:
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


def test_pruned_trials_of_a_constrained_search_are_no_obstacle() -> None:
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
def test_a_pruned_trial_is_expected_where_its_last_report_points(
    finals: list[float], expected: float
) -> None:
    def trial(state: TrialState, reports: dict[int, float], value: float | None = None):
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


def test_pruned_trials_with_several_objectives_count_with_the_medians() -> None:
    complete = [
        optuna.create_trial(values=values) for values in ([1.0, 5.0], [2.0, 3.0], [9.0, 4.0])
    ]
    pruned = [optuna.create_trial(state=TrialState.PRUNED)]
    assert final_values(pruned, complete).tolist() == [[2.0, 4.0]]


def test_bad_scores_are_compressed_and_keep_their_order() -> None:
    scores = np.array([[4.0, 1.0], [3.0, 1.0], [2.0, 1.0], [1.0, 0.0], [-1000.0, 0.0]])
    found = compress_worse(scores)
    assert found[:3] == pytest.approx(scores[:3])  # median and better
    # The best is 2 above the median, so 1 below it becomes 2 log(1 + 1/2), and so on.
    assert found[3:, 0] == pytest.approx([2 - 2 * math.log(1.5), 2 - 2 * math.log(502)])
    assert found[3:, 1] == pytest.approx([0, 0])  # without a scale


@pytest.mark.parametrize(("known", "best"), [(None, 0.4), (13, 0.6), (12, 0.4)])
def test_values_are_corrected_by_the_objectives_if_all_are_known(
    known: int | None, best: float
) -> None:
    """The value, lower is better, has its best at 0.4, and the objective at 0.6."""

    def objective(trial: optuna.trial.FrozenTrial) -> float:
        return -((trial.params["x"] - 0.6) ** 2) if trial.number < known else math.nan

    sampler = RobustGPSampler(seed=0, n_startup_trials=2, objective=objective if known else None)
    study = optuna.create_study(sampler=sampler)
    for x in np.linspace(0, 1, 13):
        study.add_trial(ended(x, (x - 0.4) ** 2))
    study.add_trial(
        optuna.create_trial(params={"x": 0.1}, distributions=UNIT, state=TrialState.PRUNED)
    )
    study.add_trial(
        optuna.create_trial(params={"x": 0.2}, distributions=UNIT, state=TrialState.FAIL)
    )
    assert study.ask(UNIT).params["x"] == pytest.approx(best, abs=0.06)


@pytest.mark.parametrize("sampler", [GPSampler, RobustGPSampler])
def test_a_collapsed_training_does_not_hide_the_best_region(sampler: type[GPSampler]) -> None:
    def told() -> float:
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


def test_large_violations_are_clipped() -> None:
    violations = np.array([[-0.5, 0.0], [0.0, 0.0], [1.0, 0.0], [2.5, 4.0], [-60.0, 0.0]])
    expected = [[-0.5, 0.0], [0.0, 0.0], [1.0, 0.0], [2.0, 2.0], [-2.0, 0.0]]  # medians 1 and 0
    assert clip_violations(violations).tolist() == expected


@pytest.mark.parametrize("sampler", [GPSampler, RobustGPSampler])
def test_a_collapsed_training_does_not_hide_a_constraint(sampler: type[GPSampler]) -> None:
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
    ("sampler", "objectives"), [(GridSampler({"lr": [1e-4]}), 1), (CmaEsSampler(), 2)]
)
def test_a_sampler_that_cannot_search_the_space_is_refused(
    sampler: BaseSampler, objectives: int
) -> None:
    with pytest.raises(ConfigError, match=type(sampler).__name__) as caught:
        check_sampler(sampler, NUMERIC, objectives)
    assert caught.value.key == "sampler"


def test_the_check_of_a_sampler_leaves_its_random_numbers() -> None:
    def first(sampler: BaseSampler) -> dict[str, Any]:
        return optuna.create_study(sampler=sampler).ask(NUMERIC.distributions()).params

    checked = RandomSampler(seed=3)
    check_sampler(checked, NUMERIC, 1)
    assert first(checked) == first(RandomSampler(seed=3))
