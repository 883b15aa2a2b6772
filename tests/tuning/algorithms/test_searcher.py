from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search_spaces import Float, Int, SearchSpace
from tests.tuning import fakes
from tuning.algorithms.method_studies import Branch
from tuning.algorithms.objectives import Objective, parse_constraint
from tuning.algorithms.samplers import create_sampler, grid
from tuning.algorithms.searcher import OptunaSearcher
from tuning.algorithms.study import TRIAL_ID, ended_in, open_study, synchronise
from tuning.config.schema import SamplerConfig
from tuning.runs.records import REFERENCE_KEY, TRIAL_KEY, SearchRecord, TrialRecord

FIRST = {"optim.lr": 1e-4, "method.text_length": 8}
SPACE = SearchSpace(
    parameters={
        "optim.lr": Float(low=1e-5, high=1e-2, log=True),
        "method.text_length": Int(low=2, high=16),
    },
    initial_points=[FIRST],
)
METRICS = ("id_val/acc", "ood_val/mean_acc", "val/mean_acc")


@pytest.fixture
def search(tmp_path: Path) -> SearchRecord:
    return fakes.search_record(tmp_path)


@pytest.fixture
def study(search: SearchRecord) -> optuna.Study:
    return open_study(search, SamplerConfig(), SPACE)


def searcher(  # type: ignore[no-untyped-def]
    study: optuna.Study,
    search: SearchRecord,
    trials: int = 4,
    grid: list[dict[str, Any]] | None = None,
    **more: Any,
):
    allows: Callable[[int], bool] = lambda number: number < trials  # noqa: E731
    branch = Branch(SPACE, study, grid=grid)
    return OptunaSearcher([branch], search, may_propose=allows, **more)


def result(step: int, value: float, **more: float) -> dict[str, float]:
    return {"step": step, "val/mean_acc": value, **more}


def params(proposal: Any) -> dict[str, Any]:
    return {key: value for key, value in proposal.items() if key != TRIAL_KEY}


def test_references_come_first_then_the_first_point_then_proposals_until_the_budget_is_spent(
    study: optuna.Study, search: SearchRecord
) -> None:
    s = searcher(study, search, trials=2, references=("ft",))
    assert s.suggest("a") == {TRIAL_KEY: "ft", REFERENCE_KEY: "ft"}
    assert s.suggest("b") == {TRIAL_KEY: "trial-000", **FIRST}
    third = s.suggest("c")
    assert third.keys() == {TRIAL_KEY, *FIRST}
    assert third[TRIAL_KEY] == "trial-001"
    assert s.suggest("d") == Searcher.FINISHED


def test_a_reference_never_reaches_the_study(study: optuna.Study, search: SearchRecord) -> None:
    s = searcher(study, search, references=("ft",))
    s.suggest("a")
    s.on_trial_result("a", result(240, 50.0))
    s.on_trial_complete("a", result(240, 50.0))
    assert [trial.state for trial in study.trials] == [TrialState.WAITING]  # the first point


def test_a_trial_at_its_last_step_is_complete(study: optuna.Study, search: SearchRecord) -> None:
    s = searcher(study, search)
    s.suggest("a")
    s.on_trial_result("a", result(120, 50.0))
    s.on_trial_complete("a", result(240, 55.0))
    (trial,) = study.trials
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 55.0)
    assert trial.intermediate_values == {120: 50.0, 240: 55.0}


def test_a_stopped_trial_is_pruned_with_its_intermediate_values(
    study: optuna.Study, search: SearchRecord
) -> None:
    s = searcher(study, search)
    s.suggest("a")
    s.on_trial_result("a", result(30, 49.0))
    s.on_trial_complete("a", result(60, 51.0))  # Tune brings the last report with the end alone
    (trial,) = study.trials
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {30: 49.0, 60: 51.0}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_a_failure(
    study: optuna.Study, search: SearchRecord, value: float
) -> None:
    s = searcher(study, search)
    s.suggest("a")
    s.on_trial_result("a", result(120, value))
    s.on_trial_complete("a", result(240, value))
    assert study.trials[0].state == TrialState.FAIL


def test_an_error_is_a_failure(study: optuna.Study, search: SearchRecord) -> None:
    s = searcher(study, search)
    s.suggest("a")
    s.on_trial_complete("a", error=True)
    assert study.trials[0].state == TrialState.FAIL


def test_constraints_are_told_by_how_much_they_are_missed(
    search: SearchRecord, tmp_path: Path
) -> None:
    lines = ("id_val/acc >= zero_shot.id_val/acc", "id_val/acc >= best - 0.5")
    search = replace(search, constraints=tuple(parse_constraint(c, METRICS) for c in lines))
    study = open_study(search, SamplerConfig(), SPACE)
    s = searcher(study, search)
    for number, id_acc in enumerate((83.0, 85.0, 80.0)):  # zero-shot has 82.4
        s.suggest(str(number))
        s.on_trial_complete(str(number), result(240, 60.0, **{"id_val/acc": id_acc}))
    told = [list(trial.constraints.values()) for trial in study.trials]
    expected = [[-0.6, -0.5], [-2.6, -0.5], [2.4, 4.5]]
    assert told == [pytest.approx(row) for row in expected]


def test_several_objectives_and_pruning(search: SearchRecord) -> None:
    search = replace(search, objectives=(Objective("id_val/acc"), Objective("ood_val/mean_acc")))
    study = open_study(search, SamplerConfig(), SPACE)
    s = searcher(study, search)
    reported = {"id_val/acc": 84.0, "ood_val/mean_acc": 61.0}
    for number, step in enumerate((240, 60)):
        s.suggest(str(number))
        s.on_trial_result(str(number), {"step": 30, **reported})
        s.on_trial_complete(str(number), {"step": step, **reported})
    whole, stopped = study.trials
    assert (whole.state, whole.values) == (TrialState.COMPLETE, [84.0, 61.0])
    assert (stopped.state, stopped.values) == (TrialState.PRUNED, None)
    assert [trial.number for trial in study.best_trials] == [0]


@pytest.mark.parametrize("name", ["tpe", "gp", "cma_es", "nsga2", "qmc", "random"])
def test_every_sampler_proposes_inside_the_space_and_learns(
    search: SearchRecord, name: str
) -> None:
    config = SamplerConfig.model_validate({"name": name, "startup_trials": 3})
    study = open_study(search, config, SPACE)
    s = searcher(study, search, trials=9)
    for number in range(9):
        proposal = s.suggest(str(number))
        assert 1e-5 <= proposal["optim.lr"] <= 1e-2
        assert proposal["method.text_length"] in range(2, 17)
        step = 240 if number % 3 else 60
        s.on_trial_complete(str(number), result(step, -math.log(proposal["optim.lr"])))
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.PRUNED) == 3
    assert states.count(TrialState.COMPLETE) == 6


def test_a_grid_is_every_combination_once_and_ends_the_search(search: SearchRecord) -> None:
    study = open_study(search, SamplerConfig(name="grid"), SPACE)
    points = grid(SPACE, points=3, seed=0)
    s = searcher(study, search, trials=100, grid=points)
    proposed = []
    while (proposal := s.suggest(str(len(proposed)))) != Searcher.FINISHED:
        proposed.append(params(proposal))
        s.on_trial_complete(str(len(proposed) - 1), result(240, 1.0))
    lrs = sorted({p["optim.lr"] for p in proposed})
    assert lrs == pytest.approx([1e-5, 10**-3.5, 1e-2])
    assert sorted({p["method.text_length"] for p in proposed}) == [2, 9, 16]
    assert len(proposed) == len({tuple(p.values()) for p in proposed}) == 9


def test_a_grid_goes_on_after_a_resume_with_the_points_that_are_left(search: SearchRecord) -> None:
    points = grid(SPACE, points=3, seed=0)
    study = open_study(search, SamplerConfig(name="grid"), SPACE)
    first = searcher(study, search, trials=100, grid=points)
    earlier = []
    for number in range(5):
        earlier.append(fakes.trial(number, params=params(first.suggest(str(number)))))
        first.on_trial_complete(str(number), result(240, 1.0))
    again = searcher(study, search, trials=100, grid=points, earlier=earlier)
    left = []
    while (proposal := again.suggest(f"again {len(left)}")) != Searcher.FINISHED:
        left.append(params(proposal))
    assert [record.params for record in earlier] + left == points


def test_a_sampler_does_not_propose_the_same_points_again_after_a_resume() -> None:
    def proposals(known: int) -> list[float]:
        study = optuna.create_study(sampler=create_sampler(SamplerConfig(name="random"), known))
        return [study.ask(SPACE.distributions()).params["optim.lr"] for _ in range(4)]

    assert proposals(0) == proposals(0)
    assert not set(proposals(0)) & set(proposals(4))


def after_a_crash(search: SearchRecord) -> list[TrialRecord]:
    """What the journal says when the driver was killed: one trial ended, one was running."""
    study = open_study(search, SamplerConfig(), SPACE)
    s = searcher(study, search)
    first, second = s.suggest("a"), s.suggest("b")
    s.suggest("never started")
    ended = fakes.trial(0, params=params(first))
    running = fakes.trial(1, params=params(second), outcome="stopped", curve=ended.curve[:1])
    assert (first[TRIAL_KEY], second[TRIAL_KEY]) == ("trial-000", "trial-001")
    return [ended, running]


def test_after_a_crash_unfinished_trials_go_on_under_their_names_and_none_is_lost(
    search: SearchRecord,
) -> None:
    earlier = after_a_crash(search)
    study = open_study(search, SamplerConfig(), SPACE)
    synchronise(study, SPACE.distributions(), search, earlier)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING", "RUNNING"]
    s = searcher(study, search, earlier=earlier)
    assert s.suggest("x") == {TRIAL_KEY: "trial-001", **earlier[1].params}
    assert s.suggest("y")[TRIAL_KEY] == "trial-002"
    assert s.suggest("z")[TRIAL_KEY] == "trial-003"
    assert s.suggest("end") == Searcher.FINISHED
    s.on_trial_complete("x", result(240, 50.0))
    s.on_trial_complete("y", result(60, 50.0))
    s.on_trial_complete("z", error=True)
    assert {t.user_attrs[TRIAL_ID]: t.state.name for t in study.trials} == {
        "trial-000": "COMPLETE",
        "trial-001": "COMPLETE",
        "trial-002": "PRUNED",
        "trial-003": "FAIL",
    }


def test_a_trial_cut_off_between_two_of_its_parameters_is_completed(search: SearchRecord) -> None:
    study = open_study(search, SamplerConfig(), SPACE)
    half = study.ask()
    half.set_user_attr(TRIAL_ID, "trial-000")
    drawn = half._suggest("optim.lr", SPACE.distributions()["optim.lr"])
    proposal = searcher(study, search).suggest("a")
    assert proposal.keys() == {TRIAL_KEY, *FIRST}
    assert (proposal[TRIAL_KEY], proposal["optim.lr"]) == ("trial-000", drawn)


def test_what_optuna_knows_to_have_ended_is_known(search: SearchRecord) -> None:
    study = open_study(search, SamplerConfig(), SPACE)
    s = searcher(study, search)
    records = [
        fakes.trial(number, params=params(s.suggest(name))) for number, name in enumerate("abcd")
    ]
    s.on_trial_complete("a", result(240, 50.0))
    s.on_trial_complete("b", result(60, 50.0))
    s.on_trial_complete("c", error=True)
    assert ended_in(study, records) == {
        "trial-000": "finished",
        "trial-001": "pruned",
        "trial-002": "failed",
    }
    other = replace(records[2], params={"optim.lr": 2e-3, "method.text_length": 3})
    assert ended_in(study, [other]) == {}  # of that name, but another trial


def test_a_name_that_another_space_gave_away_does_not_mix_two_trials(search: SearchRecord) -> None:
    study = open_study(search, SamplerConfig(), SPACE)
    searcher(study, search).suggest("asked here, and never started")
    elsewhere = fakes.trial(0, params={"optim.lr": 5e-4, "method.text_length": 5})
    synchronise(study, SPACE.distributions(), search, [elsewhere])
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    assert [trial.params for trial in complete] == [elsewhere.params]
    assert study.trials[0].state == TrialState.FAIL


def test_a_study_that_is_lost_is_made_again_from_the_journal(search: SearchRecord) -> None:
    earlier = after_a_crash(search)
    (search.run_folder / "optuna.journal").unlink()
    study = open_study(search, SamplerConfig(), SPACE)
    synchronise(study, SPACE.distributions(), search, earlier)
    states = {t.user_attrs[TRIAL_ID]: t.state.name for t in study.trials}
    assert states == {"trial-000": "COMPLETE", "trial-001": "RUNNING"}
    assert study.trials[0].params == earlier[0].params
    assert study.trials[0].intermediate_values == {
        int(point["step"]): point["val/mean_acc"] for point in earlier[0].curve
    }


def test_another_space_is_another_study_that_knows_the_trials_inside_of_it(
    search: SearchRecord,
) -> None:
    inside = fakes.trial(0, params={"optim.lr": 1e-3, "method.text_length": 4})
    outside = fakes.trial(1, params={"optim.lr": 2e-5, "method.text_length": 4})
    narrowed = SPACE.model_copy(
        update={"parameters": {**SPACE.parameters, "optim.lr": Float(low=1e-4, high=1e-2)}}
    )
    before = open_study(search, SamplerConfig(), SPACE)
    after = open_study(search, SamplerConfig(), narrowed)
    assert before.study_name != after.study_name
    synchronise(after, narrowed.distributions(), search, [inside, outside])
    assert [trial.user_attrs[TRIAL_ID] for trial in after.trials] == ["trial-000"]
    s = OptunaSearcher([Branch(narrowed, after)], search, earlier=[inside, outside])
    proposal = s.suggest("a")
    assert proposal[TRIAL_KEY] == "trial-002"
    assert proposal["optim.lr"] >= 1e-4


def test_a_torn_line_and_a_lock_of_a_killed_driver_do_not_harm_the_study(
    search: SearchRecord,
) -> None:
    earlier = after_a_crash(search)
    path = search.run_folder / "optuna.journal"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "worker')
    (search.run_folder / "optuna.journal.lock").symlink_to("nothing")
    study = open_study(search, SamplerConfig(), SPACE)
    synchronise(study, SPACE.distributions(), search, earlier)
    again = open_study(search, SamplerConfig(), SPACE)
    assert [trial.state.name for trial in again.trials] == ["COMPLETE", "RUNNING", "RUNNING"]


def test_a_database_keeps_the_study_and_two_searches_of_one_name_stay_apart(
    search: SearchRecord, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    here = open_study(search, SamplerConfig(), SPACE, url)
    there = open_study(
        replace(search, run_folder=tmp_path / "elsewhere"), SamplerConfig(), SPACE, url
    )
    searcher(here, search).suggest("a")
    assert len(open_study(search, SamplerConfig(), SPACE, url).trials) == 1
    assert there.trials == []
