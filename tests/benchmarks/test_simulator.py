from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from search_spaces import Float, Int, SearchSpace
from tests.benchmarks.contenders import (
    CONTENDERS,
    NO_LINE,
    OURS,
    RANDOM,
    STOCK,
    WITH_ASHA,
    Problem,
    ours,
)
from tests.benchmarks.curve_table import Costs, curve_table, median_costs, unit_point
from tests.benchmarks.simulate import Setting, recorded_setting, regrets, start_points
from tests.benchmarks.simulator import simulate
from tests.benchmarks.surface import SimulatedTrainings, Surfaces
from tuning.config.objectives import Objective
from tuning.config.prior import PriorConfig
from tuning.execution.ray_session import ray_session

SPACE = SearchSpace(
    parameters={
        "optim.lr": Float(low=1e-4, high=1e-2, log=True),
        "method.text_length": Int(low=1, high=5),
    }
)
COSTS = Costs(step_seconds=1.0, eval_seconds=5.0, final_seconds=5.0)
LAST = 40
SLOW = (WITH_ASHA,)
"""Of the contenders that take seconds, those that are simulated here."""


def row(configuration, step, score, lr=1e-3, length=1):
    params = {"optim.lr": lr, "method.text_length": length}
    return {"configuration": configuration, "seed": 0, **params, "step": step, "score": score}


@pytest.fixture
def table():
    """Nine configurations that rise evenly to a final score, highest at 1e-3; one that diverges."""
    rows = []
    for number, lr in enumerate(np.geomspace(1e-4, 1e-2, 9)):
        final = 90 - 10 * abs(math.log10(lr) + 3)
        lasts = LAST if number < 8 else 20
        rows += [row(number, s, final * s / LAST, float(lr)) for s in range(10, lasts + 1, 10)]
    return curve_table(rows, SPACE)


class Script(Searcher):
    """Proposes what it was given, and writes down every call."""

    def __init__(self, lrs, calls):
        super().__init__(metric="score", mode="max")
        self.lrs, self.calls, self.names = list(lrs), calls, dict[str, int]()

    def suggest(self, trial_id):
        if not self.lrs:
            return Searcher.FINISHED
        lr = self.lrs.pop(0)
        if lr is None:
            return None
        self.names[trial_id] = len(self.names)
        self.calls.append(("suggest", self.names[trial_id]))
        return {"optim.lr": lr, "method.text_length": 1}

    def on_trial_result(self, trial_id, result):
        self.calls.append(("searcher result", self.names[trial_id], *_seen(result)))

    def on_trial_complete(self, trial_id, result=None, error=False):
        seen = _seen(result) if result else (None,)
        self.calls.append(("searcher complete", self.names[trial_id], *seen, error))


class StopsBelow(FIFOScheduler):
    """Stops what has less than so much at step 20, and writes down every call."""

    def __init__(self, bound, searcher):
        super().__init__()
        self.bound, self.searcher = bound, searcher

    def on_trial_add(self, tune_controller, trial):
        self._note("add", trial)

    def on_trial_result(self, tune_controller, trial, result):
        self._note("result", trial, *_seen(result))
        stops = result["step"] == 20 and result["score"] < self.bound
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller, trial, result):
        self._note("complete", trial, *_seen(result))

    def on_trial_error(self, tune_controller, trial):
        self._note("error", trial)

    def _note(self, what, trial, *seen):
        number = self.searcher.names[trial.trial_id]
        self.searcher.calls.append((f"scheduler {what}", number, *seen))


def _seen(result):
    done = bool(result.get("done"))
    return result["step"], result["score"], result["training_iteration"], done


def run(table, lrs, bound=0.0, gpus=1):
    searcher = Script(lrs, [])
    scheduler = StopsBelow(bound, searcher)
    ended = list(simulate(searcher, scheduler, table, COSTS, (20, LAST), gpus))
    return ended, searcher.calls


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.usefixtures("local_ray")
def test_ray_tune_itself_makes_the_same_calls_in_the_same_order(table, tmp_path):
    def train(config):
        curve = table.curves[table.nearest(config)]
        for step in (20, LAST):
            if step not in curve:
                raise ArithmeticError("diverged")
            tune.report({**curve[step], "step": step})

    lrs = [1e-3, 1e-4, 1e-2, 2e-3]
    searcher = Script(lrs, [])
    with ray_session():
        tuner = tune.Tuner(
            train,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=StopsBelow(42.0, searcher),
                num_samples=len(lrs),
                max_concurrent_trials=1,
            ),
            run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
        )
        tuner.fit()
    assert searcher.calls == run(table, lrs, bound=42.0)[1]


def test_a_training_that_diverged_is_an_error_at_the_time_of_its_missing_report(
    table,
):
    (ended,), calls = run(table, [1e-2])
    assert (ended.outcome, ended.step, ended.seconds) == ("failed", 20, 50.0)
    assert calls[-2:] == [("scheduler error", 0), ("searcher complete", 0, None, True)]


def test_the_clock_counts_steps_and_the_evaluations_that_are_made(table):
    ended, _ = run(table, [1e-3, 1e-4, 1e-3], bound=42.0)
    assert [e.seconds for e in ended] == [50.0, 75.0, 125.0]  # 2 (20 + 5), then 20 + 5


def test_devices_run_side_by_side_and_take_the_next_trial_as_they_become_free(
    table,
):
    ended, calls = run(table, [1e-3, 1e-4, 1e-3, 1e-3], bound=42.0, gpus=2)
    assert [e.seconds for e in ended] == [25.0, 50.0, 75.0, 100.0]
    assert [e.outcome for e in ended] == ["stopped", "finished", "finished", "finished"]
    begun = [calls.index(("suggest", number)) for number in range(4)]
    ends = [i for i, call in enumerate(calls) if call[0] == "searcher complete"]
    assert begun[1] < ends[0] < begun[2] < ends[1] < begun[3]


def test_starting_a_trial_takes_its_time(table):
    searcher = Script([1e-3], [])
    costs = Costs(1.0, 5.0, final_seconds=8.0, line_seconds=2.0, start_seconds=7.0)
    (ended,) = simulate(searcher, FIFOScheduler(), table, costs, [20, LAST])
    assert ended.seconds == 7 + (20 + 5) + (20 + 8 + 2)


def test_a_searcher_with_nothing_to_propose_is_asked_again_after_the_next_report(
    table,
):
    ended, _ = run(table, [1e-3, None, 1e-3], gpus=2)
    assert [e.seconds for e in ended] == [50.0, 75.0]
    assert run(table, [None]) == ([], [])


def test_a_proposal_gets_the_curve_that_is_nearest_on_the_scale_of_its_parameters():
    corners = [row(i, 1, 0.0, lr, n) for i, (lr, n) in enumerate([(1e-4, 1), (1e-2, 1), (1e-2, 5)])]
    table = curve_table(corners, SPACE)
    assert table.nearest({"optim.lr": 9e-4, "method.text_length": 1}) == 0  # linearly 1 is nearer
    assert table.nearest({"optim.lr": 1.1e-3, "method.text_length": 2}) == 1
    assert table.nearest({"optim": {"lr": 2e-3}, "method": {"text_length": 4}}) == 2
    assert unit_point(SPACE, corners[2]).tolist() == [1.0, 1.0]


def test_a_diverged_configuration_is_worse_than_all_others(table):
    finals = table.finals("score")
    assert finals.argmax() == 4
    assert finals[8] == -math.inf


def test_costs_are_medians_without_what_each_first_row_has_of_loading():
    def at(configuration, step, wall, evaluating, cpu):
        costs = {"cost/seconds": wall, "cost/eval_seconds": evaluating, "cost/cpu_seconds": cpu}
        line = 0.5 if step == LAST else None
        return row(configuration, step, 0.0) | costs | {"line/a": line}

    rows = [
        at(0, 10, 100.0, 50.0, 90.0),
        at(0, 20, 110.0, 54.0, 95.0),  # 10 s for 5 of the CPU: 2 to evaluate, 3 for ten steps
        at(0, 30, 120.0, 58.0, 100.0),
        at(0, LAST, 140.0, 72.0, 116.0),  # 20 s for 16: 11.2 to evaluate
        at(1, 10, 1.0, 0.5, 1.0),
        at(1, 20, 101.0, 50.5, 101.0),  # an outlier
    ]
    costs = median_costs(rows)
    assert costs.step_seconds == pytest.approx(0.39)
    assert costs.eval_seconds == pytest.approx(2.0)
    assert costs.line_seconds == pytest.approx(4 * 2.0)
    assert costs.final_seconds == pytest.approx(11.2 - 8.0)


def rows_of_a_hill():
    """Final scores of 80 less 10 for each decade from lr 1e-3, and 5 less at the end of the line.

    Two seeds a point, whose noise is ten times as large from half a decade around the best one.
    """
    rng, rows = np.random.default_rng(0), []
    for number, lr in enumerate(np.geomspace(1e-4, 1e-2, 40)):
        offset = math.log10(lr / 1e-3)
        for seed in range(2):
            final = 80 - 10 * offset**2 + (3.0 if abs(offset) > 0.5 else 0.3) * rng.normal()
            for step in range(10, LAST + 1, 10):
                acc = final - (LAST - step)
                values = {"seed": seed, "id_val/acc": acc, "id_val/nll": math.exp(-final / 100)}
                if step == LAST:
                    values |= {"end/id_val/acc": acc - 5, "end/id_val/nll": values["id_val/nll"]}
                rows.append(row(number, step, 0.0, float(lr), 1 + number % 5) | values)
    return rows


@pytest.fixture(scope="module")
def setting():
    table, metrics = curve_table(rows_of_a_hill(), SPACE), ("id_val/acc", "id_val/nll")
    lines, ends = Surfaces(table, metrics), Surfaces(table.at_ends(), metrics)
    problem = Problem(SPACE, Objective("id_val/acc"), LAST, 10, 2)
    return Setting(problem, lines, ends, replace(COSTS, line_seconds=4.0), gpus=1)


def test_the_surface_is_the_truth_and_its_noise_that_between_seeds(setting):
    surfaces = setting.lines
    assert surfaces.best == pytest.approx(80, abs=0.5)
    assert surfaces.best_point[0] == pytest.approx(0.5, abs=0.1)
    assert surfaces.matters.tolist() == [True, False]  # the score ignores the length
    assert surfaces.noise_at(80.0)[:, -2].std() == pytest.approx(0.3, rel=0.4)
    assert surfaces.noise_at(72.0)[:, -2].std() == pytest.approx(3.0, rel=0.4)
    noise = surfaces.noise.reshape(40, 2)
    np.testing.assert_allclose(noise.sum(axis=1), 0, atol=1e-9)  # a surplus is the surface's
    finals = np.array([r["id_val/acc"] for r in rows_of_a_hill() if r["step"] == LAST])
    variances = finals.reshape(40, 2).var(axis=1, ddof=1)
    assert (noise**2).mean(axis=1) == pytest.approx(variances)
    (truth,) = surfaces.at(np.array([[0.6, 0.5]]))[:, -1, 0]
    rng = np.random.default_rng(1)
    draws = [surfaces.draw(np.array([0.6, 0.5]), rng) for _ in range(300)]
    seen = [curve[LAST]["id_val/acc"] for _, curve in draws]
    assert [known for known, _ in draws] == pytest.approx([truth] * 300)
    assert np.mean(seen) == pytest.approx(truth, abs=0.1)
    assert np.std(seen) == pytest.approx(0.3, rel=0.5)


def test_a_point_that_is_trained_again_keeps_its_number_and_its_truth(setting):
    trainings = SimulatedTrainings(setting.lines, np.random.default_rng(0))
    configs = [{"optim.lr": lr, "method.text_length": 1} for lr in (1e-3, 2e-3, 1e-3)]
    started = [trainings.start(config) for config in configs]
    assert [number for number, _ in started] == [0, 1, 0]
    assert started[0][1] != started[2][1]
    assert len(trainings.truths) == 2


def test_without_lines_a_search_pays_less_and_gets_the_end(setting):
    lines, with_line = setting.of(CONTENDERS[OURS])
    ends, without = setting.of(CONTENDERS[OURS + NO_LINE])
    (at_line,), (at_end,) = (of.at(ends.best_point[None]) for of in (lines, ends))
    assert at_end[-1, 0] == pytest.approx(at_line[-1, 0] - 5, abs=0.3)
    assert at_end[:-1, 0] == pytest.approx(at_line[:-1, 0], abs=0.3)
    assert with_line.interval(10, last=True) - without.interval(10, last=True) == 4.0
    assert with_line.interval(10, last=False) == without.interval(10, last=False)
    assert setting.best == lines.best


def test_a_prior_is_off_by_its_distance(setting):
    setting = replace(setting, prior=PriorConfig(points=5))
    for seed in range(5):
        center, *around = start_points(setting, 0.2, seed)
        offset = unit_point(SPACE, center) - setting.ends.best_point
        assert abs(offset[0]) == pytest.approx(0.2)
        assert len(around) == 5


def test_starts_cost_time(setting):
    one = setting.trial_seconds
    starts = replace(setting, costs=replace(setting.costs, start_seconds=one))
    processes = replace(setting, costs=replace(setting.costs, process_seconds=one))
    fast, slow, kept = (regrets(RANDOM, None, 0, case) for case in (setting, starts, processes))
    np.testing.assert_array_equal(slow[1::2], fast[: len(fast) // 2])  # of trials, half are left
    np.testing.assert_array_equal(kept[1:], fast[:-1])  # kept workers start processes once
    _, of_stock = processes.of(CONTENDERS[STOCK])
    assert (of_stock.start_seconds, of_stock.process_seconds) == (one, 0.0)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.ray] if n in SLOW else [])
        for n in CONTENDERS
        if n in SLOW or not ("GP" in n or n.startswith("ours"))  # one of those that take seconds
    ],
)
def test_a_contender_does_the_same_again_with_the_same_seed(setting, name):
    short = replace(setting, costs=replace(setting.costs, start_seconds=60.0))
    short = replace(short, problem=replace(short.problem, trials=8))
    distance = 0.1 if CONTENDERS[name].prior else None
    first, second = (regrets(name, distance, 3, short) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first[-1])


@pytest.mark.parametrize(("scheduler", "other"), [("asha", "stopped"), ("none", "failed")])
def test_our_searcher_gets_stopped_trials_as_pruned_and_diverged_ones_as_failed(
    table, scheduler, other
):
    problem = Problem(SPACE, Objective("score"), LAST, 10, 2)
    contender = ours("TPE", "tpe", scheduler)
    searcher, scheduler = contender.create(problem, 0)
    steps = contender.evaluate_at(problem)
    ended = list(islice(simulate(searcher, scheduler, table, COSTS, steps), 80))
    states = {
        "finished": TrialState.COMPLETE,
        "stopped": TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }
    study: optuna.Study = searcher.study
    assert [t.state for t in study.trials[:80]] == [states[e.outcome] for e in ended]
    assert {e.outcome for e in ended} >= {"finished", other}


def test_all_contenders_with_a_prior_begin_at_its_points(setting):
    points = start_points(setting, 0.1, 0)
    problem = replace(setting.problem, points=points)
    for name, contender in CONTENDERS.items():
        searcher, _ = contender.create(problem, 0)
        asked = [flatten_dict(searcher.suggest(str(i)), delimiter=".") for i in range(4)]
        found = [{key: proposal[key] for key in SPACE.parameters} for proposal in asked]
        assert (found == list(points)) == contender.prior, name


def test_the_regret_is_of_the_trial_with_the_best_observed_value(setting):
    name = RANDOM + NO_LINE
    found = regrets(name, None, 5, setting)
    errors = regrets(name, None, 5, replace(setting, shows="error"))
    searcher, scheduler = CONTENDERS[name].create(setting.problem, 5)
    surfaces, costs = setting.of(CONTENDERS[name])
    trainings = SimulatedTrainings(surfaces, np.random.default_rng((5, 1)))
    ended = list(islice(simulate(searcher, scheduler, trainings, costs, [LAST]), 22))
    for units in (1, 7, 20):
        trials = int(units * 49 / 45)  # a trial takes 45 s, and one with a line 49
        best = max(ended[:trials], key=lambda e: float(e.result["id_val/acc"]))
        truth = trainings.truths[best.configuration]
        assert found[units - 1] == pytest.approx(setting.best - truth)
        assert errors[units - 1] == pytest.approx(best.result["id_val/acc"] - truth)


def test_a_parameter_that_was_fixed_in_the_recording_is_not_searched():
    space = recorded_setting().problem.space
    assert list(space.parameters) == ["method.reg_weight", "optim.lr"]
