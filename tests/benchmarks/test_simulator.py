import math
from dataclasses import replace
from itertools import islice

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.schedulers import FIFOScheduler
from ray.tune.utils import flatten_dict

from search_spaces import Float, Int, SearchSpace
from tests.benchmarks.contenders import (
    ALONG_LINE,
    CONTENDERS,
    NO_LINE,
    OURS,
    RANDOM,
    STOCK,
    WITH_ASHA,
    Problem,
    ours,
)
from tests.benchmarks.curve_table import (
    Costs,
    curve_table,
    median_costs,
    unit_point,
    without_collapse,
)
from tests.benchmarks.scripted import Script, StopsBelow
from tests.benchmarks.simulate import (
    Setting,
    differences,
    recorded_setting,
    regrets,
    start_points,
)
from tests.benchmarks.simulator import simulate
from tests.benchmarks.surface import SimulatedTrainings, Surfaces
from tuning.config.objectives import Objective
from tuning.config.prior import PriorConfig

SPACE = SearchSpace(
    parameters={
        "optim.lr": Float(low=1e-4, high=1e-2, log=True),
        "method.text_length": Int(low=1, high=5),
    }
)
COSTS = Costs(step_seconds=1.0, eval_seconds=5.0, final_seconds=5.0)
LAST = 40
REPEATED = [
    *(name for name in CONTENDERS if not name.startswith("ours")),
    pytest.param(WITH_ASHA, marks=pytest.mark.ray),  # one of those that take seconds
]


class Rising:
    """Trainings that rise evenly to a final score, highest at 1e-3; large rates diverge."""

    def start(self, config):
        lr = flatten_dict(config, delimiter=".")["optim.lr"]
        final, last = 90 - 10 * abs(math.log10(lr) + 3), LAST if lr < 7.5e-3 else 20
        return 0, {step: {"score": final * step / LAST} for step in range(10, last + 1, 10)}


def run(lrs, bound=0.0, gpus=1):
    searcher = Script([lr and {"optim.lr": lr} for lr in lrs], "score")
    scheduler = StopsBelow(searcher, 20, bound)
    ended = list(simulate(searcher, scheduler, Rising(), COSTS, (20, LAST), gpus))
    return ended, searcher.calls


def test_a_training_that_diverged_is_an_error_at_the_time_of_its_missing_report():
    (ended,), calls = run([1e-2])
    assert (ended.outcome, ended.step, ended.seconds) == ("failed", 20, 50.0)
    ends = [(call[0], call[-1]) for call in calls[-2:]]
    assert ends == [("scheduler error", None), ("searcher complete", True)]


def test_the_clock_counts_steps_and_the_evaluations_that_are_made():
    ended, _ = run([1e-3, 1e-4, 1e-3], bound=42.0)
    assert [e.seconds for e in ended] == [50.0, 75.0, 125.0]  # 2 (20 + 5), then 20 + 5


def test_devices_run_side_by_side_and_take_the_next_trial_as_they_become_free():
    ended, calls = run([1e-3, 1e-4, 1e-3, 1e-3], bound=42.0, gpus=2)
    assert [e.seconds for e in ended] == [25.0, 50.0, 75.0, 100.0]
    assert [e.outcome for e in ended] == ["stopped", "finished", "finished", "finished"]
    begun = [i for i, call in enumerate(calls) if call[0] == "suggest"]
    ends = [i for i, call in enumerate(calls) if call[0] == "searcher complete"]
    assert begun[1] < ends[0] < begun[2] < ends[1] < begun[3]


def test_starting_a_trial_takes_its_time():
    searcher = Script([{"optim.lr": 1e-3}], "score")
    costs = Costs(1.0, 5.0, final_seconds=8.0, line_seconds=2.0, start_seconds=7.0)
    (ended,) = simulate(searcher, FIFOScheduler(), Rising(), costs, [20, LAST])
    assert ended.seconds == 7 + (20 + 5) + (20 + 8 + 2)


def test_a_searcher_with_nothing_to_propose_is_asked_again_after_the_next_report():
    ended, _ = run([1e-3, None, 1e-3], gpus=2)
    assert [e.seconds for e in ended] == [50.0, 75.0]
    assert run([None]) == ([], [])


def row(configuration, step, lr=1e-3, length=1):
    params = {"optim.lr": lr, "method.text_length": length}
    return {"configuration": configuration, "seed": 0, **params, "step": step}


def test_costs_are_medians_without_what_each_first_row_has_of_loading():
    def at(configuration, step, wall, evaluating, cpu):
        costs = {"cost/seconds": wall, "cost/eval_seconds": evaluating, "cost/cpu_seconds": cpu}
        line = 0.5 if step == LAST else None
        return row(configuration, step) | costs | {"line/a": line}

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


def test_a_single_evaluation_has_the_cost_of_its_line():
    cost = {"cost/cpu_seconds": 60.0, "cost/seconds": 120.0, "cost/eval_seconds": 40.0}
    rows = [{"configuration": n, "seed": 0, "step": 40, "line/a": 0.5, **cost} for n in range(3)]
    costs = median_costs(rows)
    assert costs.step_seconds == pytest.approx(40 / 40)
    assert costs.final_seconds + costs.line_seconds == pytest.approx(20)
    assert costs.line_seconds == pytest.approx(4 * costs.final_seconds)


def test_a_training_that_collapsed_reports_what_the_worst_of_the_others_did():
    def at(number, acc):
        params = {"optim.lr": number, "method.reg_weight": -number}
        key = {"configuration": number, "seed": 0, "step": 40, "line/a": 1.0}
        return {**key, **params, "val/mean_acc": acc, "line/0/val/mean_acc": 60.0}

    rows = without_collapse([at(0, 66.0), at(1, 12.0), at(2, 55.5)])
    assert [row["val/mean_acc"] for row in rows] == [66.0, 55.5, 55.5]
    assert [(row["optim.lr"], row["method.reg_weight"]) for row in rows] == [
        (0, 0),
        (1, -1),
        (2, -2),
    ]


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
                rows.append(row(number, step, float(lr), 1 + number % 5) | values)
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
    (truth,) = surfaces.at(np.array([[0.6, 0.5]]))[:, -1, 0]
    rng = np.random.default_rng(1)
    draws = [surfaces.draw(np.array([0.6, 0.5]), rng) for _ in range(300)]
    seen = [curve[LAST]["id_val/acc"] for _, curve in draws]
    assert [known for known, _ in draws] == pytest.approx([truth] * 300)
    assert np.mean(seen) == pytest.approx(truth, abs=0.1)
    assert np.std(seen) == pytest.approx(0.3, rel=0.5)


def test_the_last_report_has_the_line_and_the_point_that_it_chooses():
    rows = rows_of_a_hill()
    for of in rows:
        if of["step"] == LAST:  # best half way
            of |= {f"line/{a}/id_val/acc": 70.0 - 40 * (a - 0.5) ** 2 for a in (0, 0.5, 1)}
    line = [f"line/{a}/id_val/acc" for a in (0, 0.5, 1)]
    surfaces = Surfaces(curve_table(rows, SPACE), ("id_val/acc", *line))
    _, curve = surfaces.draw(np.array([0.5, 0.5]), np.random.default_rng(0))
    assert curve[10].keys() == {"id_val/acc"}
    assert [curve[LAST][name] for name in line] == pytest.approx([60, 70, 60])
    assert curve[LAST]["line/a"] == 0.5


def test_differences_are_paired_by_seed():
    noise = np.random.default_rng(0).normal(size=(5, 20))
    found = {("mine", 0.2): noise - 1, ("other", 0.2): noise, ("mine", None): noise}
    shown = differences(found, "other")
    assert [list(column.cells) for column in shown.columns[:3]] == [
        ["mine - other"],
        ["0.2"],
        ["-1.00 [-1.00, -1.00]"],
    ]


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


@pytest.mark.parametrize("name", REPEATED)
def test_a_contender_does_the_same_again_with_the_same_seed(setting, name):
    short = replace(setting, costs=replace(setting.costs, start_seconds=60.0))
    short = replace(short, problem=replace(short.problem, trials=8))
    distance = 0.1 if CONTENDERS[name].prior else None
    first, second = (regrets(name, distance, 3, short) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first[-1])


@pytest.mark.parametrize(("scheduler", "other"), [("asha", "stopped"), ("none", "failed")])
def test_our_searcher_gets_stopped_trials_as_pruned_and_diverged_ones_as_failed(scheduler, other):
    problem = Problem(SPACE, Objective("score"), LAST, 10, 2)
    contender = ours("TPE", "tpe", scheduler)
    searcher, scheduler = contender.create(problem, 0)
    steps = contender.evaluate_at(problem)
    ended = list(islice(simulate(searcher, scheduler, Rising(), COSTS, steps), 80))
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


def test_along_the_line_points_gather_where_the_best_line_points(setting):
    around = [{"optim.lr": lr, "method.text_length": 2} for lr in (1e-3, 4e-3, 5e-4)]
    searcher, _ = CONTENDERS[ALONG_LINE].create(replace(setting.problem, points=around), 0)

    def tried(name, acc, a):
        lr = searcher.suggest(name)["optim.lr"]
        report = {"step": LAST, "id_val/acc": acc, "id_val/nll": 1.0, "line/a": a}
        searcher.on_trial_complete(name, report)
        return lr

    assert tried("0", 70.0, 0.5) == 1e-3
    assert tried("1", 60.0, 1.0) == pytest.approx(0.5e-3 * math.sqrt(4))
    assert tried("2", 80.0, 1.0) == pytest.approx(0.5e-3 * math.sqrt(0.5))


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
