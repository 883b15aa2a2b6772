"""The simulator: its surface and its searches."""

import math

import numpy as np
import pandas as pd
import pytest

from search_spaces import Float, SearchSpace
from tests.benchmarks.simulate.__main__ import differences, main, regrets
from tests.benchmarks.simulate.surface import (
    NLL,
    OBJECTIVE,
    ZERO_SHOT,
    Surface,
    unit_point,
    without_collapse,
)

SPACE = SearchSpace(
    parameters={
        "optim.lr": Float(low=1e-4, high=1e-2, log=True),
        "method.reg_weight": Float(low=0, high=1),
    }
)


@pytest.fixture(scope="module")
def hill():
    """Accuracies of 80 less 10 for each decade from lr 1e-3, whatever the weight.

    Two seeds a point, whose noise is ten times as large from half a decade around the best one.
    """
    rng, rows = np.random.default_rng(0), []
    for number, lr in enumerate(np.geomspace(1e-4, 1e-2, 40).tolist()):
        offset = math.log10(lr / 1e-3)
        params = {"optim.lr": lr, "method.reg_weight": number % 5 / 4}
        for seed in range(2):
            acc = 80 - 10 * offset**2 + (3.0 if abs(offset) > 0.5 else 0.3) * rng.normal()
            key = {"configuration": number, "seed": seed, **params}
            rows.append({**key, OBJECTIVE: acc, NLL: math.exp(-acc / 100), ZERO_SHOT: 50.0})
    return Surface(SPACE, pd.DataFrame(rows))


def test_the_surface_is_the_truth_and_its_noise_that_between_seeds(hill):
    assert hill.best == pytest.approx(80, abs=0.5)
    assert hill.best_point[0] == pytest.approx(0.5, abs=0.1)
    assert hill.noise_at(80.0)[:, 0].std() == pytest.approx(0.3, rel=0.4)
    assert hill.noise_at(72.0)[:, 0].std() == pytest.approx(3.0, rel=0.4)
    params = {"optim.lr": 1.6e-3, "method.reg_weight": 0.5}
    rng = np.random.default_rng(1)
    truths, reports = zip(*(hill.draw(params, rng) for _ in range(300)), strict=True)
    seen = [report[OBJECTIVE] for report in reports]
    assert set(truths) == {truths[0]}
    assert np.mean(seen) == pytest.approx(truths[0], abs=0.1)
    assert np.std(seen) == pytest.approx(0.3, rel=0.5)
    assert [-100 * math.log(report[NLL]) for report in reports] == pytest.approx(seen, abs=0.3)


def test_a_training_that_collapsed_reports_what_the_worst_of_the_others_did():
    found = without_collapse(
        pd.DataFrame(
            {
                "optim.lr": [0.0, 1.0, 2.0, 3.0],
                OBJECTIVE: [66.0, 12.0, 55.5, math.nan],
                NLL: [1.0, 9.0, 2.0, math.nan],
                ZERO_SHOT: [60.0, 60.0, 60.0, math.nan],
            }
        )
    )
    assert found[OBJECTIVE].tolist() == [66.0, 55.5, 55.5, 55.5]
    assert found[NLL].tolist() == [1.0, 2.0, 2.0, 2.0]
    assert found["optim.lr"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_prior_is_off_by_its_distance_along_what_matters(hill):
    for seed in range(5):
        center = hill.center(0.2, np.random.default_rng(seed))
        offset = unit_point(SPACE, center) - hill.best_point
        assert np.abs(offset) == pytest.approx([0.2, 0.0], abs=1e-9)


def test_the_regret_is_of_the_trial_with_the_best_observed_value(hill, monkeypatch):
    drawn, draw = [], hill.draw
    monkeypatch.setattr(hill, "draw", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    found = regrets(hill, "random", None, seed=5)
    for trials in (1, 7, 20):
        truth, _ = max(drawn[:trials], key=lambda pair: pair[1][OBJECTIVE])
        assert found[trials - 1] == pytest.approx(hill.best - truth)


def test_contenders_with_a_prior_begin_at_the_same_points(hill):
    first, second = (regrets(hill, name, 0.3, seed=1) for name in ("tpe", "auto"))
    np.testing.assert_array_equal(first[:4], second[:4])


def test_differences_are_paired_by_seed():
    noise = np.random.default_rng(0).normal(size=(5, 20))
    found = {("mine", 0.2): noise - 1, ("other", 0.2): noise, ("other", 0.4): noise}
    ((key, of),) = differences(found, "other").items()
    assert key == ("mine - other", 0.2)
    assert of == pytest.approx(np.full((5, 20), -1.0))


def test_the_command_prints_regret_and_paired_differences(capsys):
    contenders = ["random", "optuna.samplers:TPESampler"]
    main(["photographs", "--contenders", *contenders, "--against", "random", "--seeds", "2"])
    shown = capsys.readouterr().out
    assert "photographs: true regret, 2 searches" in shown
    assert "photographs: paired differences" in shown
