from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow.parquet as pq
import pytest
from optuna.trial import TrialState
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from search_spaces import Float, Int, SearchSpace
from tests.benchmarks.contenders import (
    CONTENDERS,
    OURS,
    RANDOM,
    RAW_RUNGS,
    RUNGS_ON_OBJECTIVE,
    STOCK,
    WITH_ASHA,
    Contender,
    Problem,
    ours,
)
from tests.benchmarks.curve_table import Costs, CurveTable, curve_table, median_costs, unit_point
from tests.benchmarks.record_curves import CURVES
from tests.benchmarks.simulate import (
    Setting,
    describe_noise,
    parse_arguments,
    read_setting,
    regrets,
    start_points,
)
from tests.benchmarks.simulator import Ended, simulate
from tests.benchmarks.surface import SimulatedTrainings, Surfaces
from tuning.algorithms.objectives import Objective
from tuning.algorithms.rung_check import SearchRule, search_rule
from tuning.execution.ray_session import ray_session
from tuning.runs.records import SearchRecord

SPACE = SearchSpace(
    parameters={
        "optim.lr": Float(low=1e-4, high=1e-2, log=True),
        "method.text_length": Int(low=1, high=5),
    }
)
COSTS = Costs(step_seconds=1.0, eval_seconds=5.0)
LAST = 40
SLOW = (WITH_ASHA, "ours, expected trial")
"""Of the contenders that take seconds, those that are simulated here."""


def row(configuration: int, step: int, score: float, lr: float = 1e-3, length: int = 1) -> Any:
    params = {"optim.lr": lr, "method.text_length": length}
    return {"configuration": configuration, **params, "step": step, "score": score}


@pytest.fixture
def table() -> CurveTable:
    """Nine configurations that rise evenly to a final score, highest at 1e-3; one that diverges."""
    rows = []
    for number, lr in enumerate(np.geomspace(1e-4, 1e-2, 9)):
        final = 90 - 10 * abs(math.log10(lr) + 3)
        lasts = LAST if number < 8 else 20
        rows += [row(number, s, final * s / LAST, float(lr)) for s in range(10, lasts + 1, 10)]
    return curve_table(rows, SPACE)


class Script(Searcher):
    """Proposes what it was given, and writes down every call."""

    def __init__(self, lrs: Sequence[float | None], calls: list[Any]) -> None:
        super().__init__(metric="score", mode="max")
        self.lrs, self.calls, self.names = list(lrs), calls, dict[str, int]()

    def suggest(self, trial_id: str) -> Any:
        if not self.lrs:
            return Searcher.FINISHED
        lr = self.lrs.pop(0)
        if lr is None:
            return None
        self.names[trial_id] = len(self.names)
        self.calls.append(("suggest", self.names[trial_id]))
        return {"optim.lr": lr, "method.text_length": 1}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.calls.append(("searcher result", self.names[trial_id], *_seen(result)))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        seen = _seen(result) if result else (None,)
        self.calls.append(("searcher complete", self.names[trial_id], *seen, error))


class StopsBelow(FIFOScheduler):
    """Stops what has less than so much at step 20, and writes down every call."""

    def __init__(self, bound: float, searcher: Script) -> None:
        super().__init__()
        self.bound, self.searcher = bound, searcher

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._note("add", trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        self._note("result", trial, *_seen(result))
        stops = result["step"] == 20 and result["score"] < self.bound
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self._note("complete", trial, *_seen(result))

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._note("error", trial)

    def _note(self, what: str, trial: Trial, *seen: Any) -> None:
        number = self.searcher.names[trial.trial_id]
        self.searcher.calls.append((f"scheduler {what}", number, *seen))


def _seen(result: dict[str, Any]) -> tuple[Any, ...]:
    done = bool(result.get("done"))
    return result["step"], result["score"], result["training_iteration"], done


def run(
    table: CurveTable, lrs: Sequence[float | None], bound: float = 0.0, gpus: int = 1
) -> tuple[list[Ended], list[Any]]:
    searcher = Script(lrs, [])
    scheduler = StopsBelow(bound, searcher)
    ended = list(simulate(searcher, scheduler, table, COSTS, (20, LAST), gpus))
    return ended, searcher.calls


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_ray_tune_itself_makes_the_same_calls_in_the_same_order(
    table: CurveTable, tmp_path: Path
) -> None:
    def train(config: dict[str, Any]) -> None:
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
    table: CurveTable,
) -> None:
    (ended,), calls = run(table, [1e-2])
    assert (ended.outcome, ended.step, ended.seconds) == ("failed", 20, 50.0)
    assert calls[-2:] == [("scheduler error", 0), ("searcher complete", 0, None, True)]


def test_the_clock_counts_steps_and_the_evaluations_that_are_made(table: CurveTable) -> None:
    ended, _ = run(table, [1e-3, 1e-4, 1e-3], bound=42.0)
    assert [e.seconds for e in ended] == [50.0, 75.0, 125.0]  # 2 (20 + 5), then 20 + 5


def test_devices_run_side_by_side_and_take_the_next_trial_as_they_become_free(
    table: CurveTable,
) -> None:
    ended, calls = run(table, [1e-3, 1e-4, 1e-3, 1e-3], bound=42.0, gpus=2)
    assert [e.seconds for e in ended] == [25.0, 50.0, 75.0, 100.0]
    assert [e.outcome for e in ended] == ["stopped", "finished", "finished", "finished"]
    begun = [calls.index(("suggest", number)) for number in range(4)]
    ends = [i for i, call in enumerate(calls) if call[0] == "searcher complete"]
    assert begun[1] < ends[0] < begun[2] < ends[1] < begun[3]


def test_starting_a_trial_takes_its_time(table: CurveTable) -> None:
    searcher = Script([1e-3], [])
    costs = Costs(1.0, 5.0, start_seconds=7.0)
    (ended,) = simulate(searcher, FIFOScheduler(), table, costs, [LAST])
    assert ended.seconds == costs.trial(LAST) == 7 + 40 + 5


def test_a_searcher_with_nothing_to_propose_is_asked_again_after_the_next_report(
    table: CurveTable,
) -> None:
    ended, _ = run(table, [1e-3, None, 1e-3], gpus=2)
    assert [e.seconds for e in ended] == [50.0, 75.0]
    assert run(table, [None]) == ([], [])


def test_a_scheduler_that_pauses_is_refused(table: CurveTable) -> None:
    class Pauses(FIFOScheduler):
        def on_trial_result(self, *_: Any) -> str:
            return str(TrialScheduler.PAUSE)

    with pytest.raises(NotImplementedError, match="Pauses wants to PAUSE"):
        list(simulate(Script([1e-3], []), Pauses(), table, COSTS, [LAST]))


def test_a_proposal_gets_the_curve_that_is_nearest_on_the_scale_of_its_parameters() -> None:
    corners = [row(i, 1, 0.0, lr, n) for i, (lr, n) in enumerate([(1e-4, 1), (1e-2, 1), (1e-2, 5)])]
    table = curve_table(corners, SPACE)
    assert table.nearest({"optim.lr": 9e-4, "method.text_length": 1}) == 0  # linearly 1 is nearer
    assert table.nearest({"optim.lr": 1.1e-3, "method.text_length": 2}) == 1
    assert table.nearest({"optim": {"lr": 2e-3}, "method": {"text_length": 4}}) == 2
    assert unit_point(SPACE, corners[2]).tolist() == [1.0, 1.0]


def test_a_diverged_configuration_is_worse_than_all_others(table: CurveTable) -> None:
    finals = table.finals("score")
    assert finals.argmax() == 4
    assert finals[8] == -math.inf


def test_costs_are_medians_without_what_each_first_row_has_of_loading() -> None:
    def at(configuration: int, step: int, wall: float, evaluating: float, cpu: float) -> Any:
        costs = {"cost/seconds": wall, "cost/eval_seconds": evaluating, "cost/cpu_seconds": cpu}
        return row(configuration, step, 0.0) | costs

    rows = [
        at(0, 10, 100.0, 50.0, 90.0),
        at(0, 20, 110.0, 54.0, 95.0),  # 10 s for 5 of the CPU: 2 to evaluate, 3 for ten steps
        at(0, 30, 120.0, 58.0, 100.0),
        at(1, 10, 1.0, 0.5, 1.0),
        at(1, 20, 101.0, 50.5, 101.0),  # an outlier
    ]
    costs = median_costs(rows)
    assert costs.step_seconds == pytest.approx(0.3)
    assert costs.eval_seconds == pytest.approx(2.0)


NOISE = [0.2 * float(value) for value in np.random.default_rng(0).standard_normal(40)]


def rows_of_a_hill() -> list[Any]:
    """Configurations whose final score is 80 less 10 for each decade from lr 1e-3, and noise."""
    rows = []
    for number, (lr, noise) in enumerate(zip(np.geomspace(1e-4, 1e-2, 40), NOISE, strict=True)):
        final = 80 - 10 * math.log10(lr / 1e-3) ** 2 + noise
        for step in range(10, LAST + 1, 10):
            values = {"id_val/acc": final - (LAST - step), "id_val/nll": math.exp(-final / 100)}
            rows.append(row(number, step, 0.0, float(lr), 1 + number % 5) | values)
    return rows


@pytest.fixture(scope="module")
def setting() -> Setting:
    surfaces = Surfaces(curve_table(rows_of_a_hill(), SPACE), ("id_val/acc", "id_val/nll"))
    problem = Problem(SPACE, Objective("id_val/acc"), LAST, surfaces.steps, 10, 2.0)
    return Setting(problem, surfaces, COSTS, gpus=1)


def test_the_surface_is_the_truth_and_what_it_leaves_is_the_noise(setting: Setting) -> None:
    surfaces = setting.surfaces
    assert surfaces.best == pytest.approx(80, abs=0.3)
    assert surfaces.best_point[0] == pytest.approx(0.5, abs=0.05)
    assert surfaces.matters.tolist() == [True, False]  # the score ignores the length
    noise = float(np.std(NOISE))
    assert surfaces.noise.std() == pytest.approx(noise, rel=0.4)
    (truth,) = surfaces.at(np.array([[0.75, 0.5]]))[:, -1, 0]
    assert truth == pytest.approx(80 - 10 * 0.5**2, abs=0.3)
    rng = np.random.default_rng(1)
    draws = [surfaces.draw(np.array([0.75, 0.5]), rng) for _ in range(300)]
    seen = [curve[LAST]["id_val/acc"] for _, curve in draws]
    assert [known for known, _ in draws] == pytest.approx([truth] * 300)
    assert np.mean(seen) == pytest.approx(truth, abs=0.05)
    assert np.std(seen) == pytest.approx(noise, rel=0.5)


@pytest.mark.parametrize("seeds", [2, 3])
def test_noise_is_that_between_seeds_where_points_have_several(seeds: int) -> None:
    # Noise is ten times as large from half a decade around the best point.
    rng, rows = np.random.default_rng(2), []
    for number, lr in enumerate(np.geomspace(1e-4, 1e-2, 40)):
        offset = math.log10(lr / 1e-3)
        for seed in range(seeds):
            final = 80 - 10 * offset**2 + (3.0 if abs(offset) > 0.5 else 0.3) * rng.normal()
            values = {"seed": seed, "id_val/acc": final, "id_val/nll": math.exp(-final / 100)}
            rows.append(row(number, LAST, 0.0, float(lr)) | values)
    table = curve_table(rows, SPACE)
    surfaces = Surfaces(table, ("id_val/acc", "id_val/nll"))
    assert surfaces.has_repeated_seeds
    assert surfaces.noise_at(80.0)[:, -2].std() == pytest.approx(0.3, rel=0.4)
    assert surfaces.noise_at(70.0)[:, -2].std() == pytest.approx(3.0, rel=0.4)
    noise = surfaces.noise.reshape(40, seeds)
    np.testing.assert_allclose(noise.sum(axis=1), 0, atol=1e-9)  # a surplus is the surface's
    finals = np.array([curve[LAST]["id_val/acc"] for curve in table.curves]).reshape(40, seeds)
    assert (noise**2).mean(axis=1) == pytest.approx(finals.var(axis=1, ddof=1))


def test_noise_is_multiplied_by_its_factor(setting: Setting) -> None:
    table = curve_table(rows_of_a_hill(), SPACE)
    loud = Surfaces(table, setting.surfaces.metrics, noise=2.0)
    for surfaces, factor in ((setting.surfaces, ""), (loud, ", times 2")):
        shown = f"deviation {surfaces.noise.std():.2f}, .* from the fit of the surface{factor}[.]"
        assert re.search(shown, describe_noise(surfaces, 2.0 if factor else 1.0))
    assert loud.noise == pytest.approx(2 * setting.surfaces.noise)
    point = np.array([0.3, 0.5])
    truth, seen = setting.surfaces.draw(point, np.random.default_rng(3))
    same, louder = loud.draw(point, np.random.default_rng(3))
    assert same == pytest.approx(truth)
    for step in setting.surfaces.steps:
        expected = (
            seen[step]["id_val/acc"] * 2 - setting.surfaces.at(point[None])[0, step // 10 - 1, 0]
        )
        assert louder[step]["id_val/acc"] == pytest.approx(expected)


def test_a_prior_is_off_by_its_distance(setting: Setting) -> None:
    surfaces = setting.surfaces
    for seed in range(5):
        center, *around = start_points(surfaces, 0.2, seed)
        offset = unit_point(SPACE, center) - surfaces.best_point
        assert abs(offset[0]) == pytest.approx(0.2)
        assert len(around) == 3


def test_starts_cost_time(setting: Setting) -> None:
    one = setting.full_trial
    starts = replace(setting, costs=replace(setting.costs, start_seconds=one))
    processes = replace(setting, costs=replace(setting.costs, process_seconds=one))
    for name, slow in ((RANDOM, starts), ("Ray's OptunaSearch", processes)):
        fast = regrets(name, None, 0, setting)
        half = fast[: len(fast) // 2]  # a start as long as a trial leaves half of the trials
        np.testing.assert_array_equal(regrets(name, None, 0, slow)[1::2], half)
    fast, slow = (regrets(RANDOM, None, 0, case) for case in (setting, processes))
    np.testing.assert_array_equal(slow[1:], fast[:-1])  # kept workers start processes once


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else [])
        for n in CONTENDERS
        if n in SLOW or not ("GP" in n or n.startswith("ours"))  # one of those that take seconds
    ],
)
def test_a_contender_does_the_same_again_with_the_same_seed(setting: Setting, name: str) -> None:
    short = replace(setting, costs=Costs(step_seconds=1.0, eval_seconds=5.0, start_seconds=60.0))
    short = replace(short, problem=replace(short.problem, trials=8))
    distance = 0.1 if CONTENDERS[name].prior else None
    first, second = (regrets(name, distance, 3, short) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first[-1])


@pytest.mark.parametrize(("name", "other"), [("TPE + Hyperband", "stopped"), (RANDOM, "failed")])
def test_our_searcher_gets_stopped_trials_as_pruned_and_diverged_ones_as_failed(
    table: CurveTable, name: str, other: str
) -> None:
    problem = Problem(SPACE, Objective("score"), LAST, (10, 20, 30, LAST), 10, 2.0)
    searcher, scheduler = CONTENDERS[name].create(problem, 0)
    steps = CONTENDERS[name].evaluate_at(problem)
    ended = list(islice(simulate(searcher, scheduler, table, COSTS, steps), 80))
    states = {
        "finished": TrialState.COMPLETE,
        "stopped": TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }
    study: optuna.Study = searcher.study  # type: ignore[attr-defined]
    assert [t.state for t in study.trials[:80]] == [states[e.outcome] for e in ended]
    assert {e.outcome for e in ended} >= {"finished", other}


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        (RANDOM, [LAST]),
        (STOCK, [10, 20, LAST]),
        (OURS, [LAST]),
        (WITH_ASHA, [10, 20, LAST]),
        ("TPE + median rule", [10, 20, 30, LAST]),
    ],
)
def test_a_search_evaluates_where_its_scheduler_looks_and_at_the_end(
    setting: Setting, name: str, steps: list[int]
) -> None:
    assert list(CONTENDERS[name].evaluate_at(setting.problem)) == steps


@pytest.mark.parametrize(
    ("contender", "metric"),
    [
        (CONTENDERS[WITH_ASHA], "auto"),
        (CONTENDERS[RUNGS_ON_OBJECTIVE], "objective"),
        (ours("ASHA on the objective", "gp", "asha"), "objective"),
    ],
)
def test_rungs_are_those_of_a_search_with_the_same_metric(
    setting: Setting, contender: Contender, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = []

    def created(search: SearchRecord) -> SearchRule:
        records.append(search)
        return search_rule(search)

    monkeypatch.setattr("tests.benchmarks.contenders.search_rule", created)
    contender.create(setting.problem, 0)
    (record,) = records
    scheduler = {"name": "asha", "grace_steps": 10, "reduction_factor": 2.0}
    assert record.configured("search", "scheduler") == scheduler
    assert (record.objectives, record.sampler_metric) == ((setting.problem.objective,), metric)
    assert (record.total_steps, record.trials_per_method) == (LAST, 20)


def test_rungs_on_the_objective_ignore_the_nll() -> None:
    # After four trials for the check, the NLL of one is bad and that of another good.
    values = [(60, 1.0), (61, 0.9), (62, 0.8), (63, 0.7), (70, 2.0), (50, 0.1)]
    lrs = np.geomspace(1e-4, 1e-2, len(values)).tolist()
    rows = [
        row(number, step, 0.0, lrs[number]) | {"id_val/acc": acc, "id_val/nll": nll}
        for number, (acc, nll) in enumerate(values)
        for step in (20, LAST)
    ]
    points = tuple({"optim.lr": lr, "method.text_length": 1} for lr in lrs)
    problem = Problem(SPACE, Objective("id_val/acc"), LAST, (20, LAST), 20, 2.0, points, trials=8)
    searcher, scheduler = CONTENDERS[RUNGS_ON_OBJECTIVE].create(problem, 0)
    ended = simulate(searcher, scheduler, curve_table(rows, SPACE), COSTS, (20, LAST))
    assert [e.outcome for e in islice(ended, len(lrs))] == ["finished"] * 5 + ["stopped"]


def test_raw_weights_are_reported_before_the_last_step_where_the_table_has_them(
    setting: Setting,
) -> None:
    with pytest.raises(ValueError, match=r"no raw weights at steps \[10, 20, 40\]"):
        setting.surfaces_of(CONTENDERS[RAW_RUNGS])
    rows = rows_of_a_hill()
    for found in rows:
        if found["step"] in (20, LAST):
            for metric in setting.surfaces.metrics:
                less = 5.0 if found["step"] < LAST and metric.endswith("acc") else 0.0
                found[f"raw/{metric}"] = found[metric] - less
    raw = Surfaces(curve_table(rows, SPACE).of_weights("raw/"), setting.surfaces.metrics)
    both = replace(setting, raw_surfaces=raw, problem=replace(setting.problem, grace_steps=20))
    assert both.surfaces_of(CONTENDERS[OURS]) is setting.surfaces
    assert both.surfaces_of(CONTENDERS[RAW_RUNGS]) is raw
    assert raw.best_point == pytest.approx(setting.surfaces.best_point)
    (averaged,), (seen,) = (of.at(raw.best_point[None]) for of in (setting.surfaces, raw))
    assert seen[:, 0] == pytest.approx(averaged[[1, 3], 0] - [5, 0], abs=1e-6)


def test_all_contenders_with_a_prior_begin_at_its_points(setting: Setting) -> None:
    points = start_points(setting.surfaces, 0.1, 0)
    problem = replace(setting.problem, points=points)
    for name, contender in CONTENDERS.items():
        searcher, _ = contender.create(problem, 0)
        asked = [flatten_dict(searcher.suggest(str(i)), delimiter=".") for i in range(4)]
        found = [{key: proposal[key] for key in SPACE.parameters} for proposal in asked]
        assert (found == list(points)) == contender.prior, name


def test_the_regret_is_of_the_trial_with_the_best_observed_value(setting: Setting) -> None:
    found = regrets(RANDOM, None, 5, setting)
    searcher, scheduler = CONTENDERS[RANDOM].create(setting.problem, 5)
    trainings = SimulatedTrainings(setting.surfaces, np.random.default_rng((5, 1)))
    ended = list(islice(simulate(searcher, scheduler, trainings, COSTS, [LAST]), 20))
    for trials in (1, 7, 20):
        best = max(ended[:trials], key=lambda e: float(e.result["id_val/acc"]))
        truth = trainings.truths[best.configuration]
        assert found[trials - 1] == pytest.approx(setting.surfaces.best - truth)


def test_a_parameter_that_was_fixed_in_the_recording_is_not_searched(tmp_path: Path) -> None:
    table = pq.read_table(CURVES).slice(0, 8 * 20)
    column = table.column_names.index("method.text_length")
    fixed = table.set_column(column, "method.text_length", [[8] * len(table)])
    pq.write_table(fixed, tmp_path / "plane.parquet")
    setting = read_setting(parse_arguments(["--curves", str(tmp_path / "plane.parquet")]))
    assert list(setting.problem.space.parameters) == ["method.reg_weight", "optim.lr"]
