from __future__ import annotations

import math
import pickle
from functools import partial
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search_spaces import Float, Int, SearchSpace
from tuning.config import ObjectiveConfig, SamplerConfig
from tuning.records import REFERENCE_KEY
from tuning.searcher import OptunaSearcher, create_study

OBJECTIVE = ObjectiveConfig(metric="val/mean_acc")
FIRST = {"optim.lr": 1e-4, "method.text_length": 8}
SPACE = SearchSpace(
    parameters={
        "optim.lr": Float(low=1e-5, high=1e-2, log=True),
        "method.text_length": Int(low=2, high=16),
    },
    initial_points=[FIRST],
)


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return create_study(tmp_path, "test", SamplerConfig(), OBJECTIVE)


def searcher(study: optuna.Study, trials: int = 4, references: tuple[str, ...] = ()):  # type: ignore[no-untyped-def]
    return OptunaSearcher(
        SPACE, lambda: study, OBJECTIVE, total_steps=90, trials=trials, references=references
    )


def result(step: int, value: float) -> dict[str, float]:
    return {"step": step, "val/mean_acc": value}


def test_references_come_first_then_the_first_point_then_proposals_until_the_budget_is_spent(
    study: optuna.Study,
) -> None:
    s = searcher(study, trials=2, references=("ft",))
    assert s.suggest("a") == {REFERENCE_KEY: "ft"}
    assert s.suggest("b") == FIRST
    third = s.suggest("c")
    assert isinstance(third, dict)
    assert third.keys() == FIRST.keys()
    assert s.suggest("d") == Searcher.FINISHED


def test_a_reference_never_reaches_the_study(study: optuna.Study) -> None:
    s = searcher(study, references=("ft",))
    s.suggest("a")
    s.on_trial_result("a", result(90, 50.0))
    s.on_trial_complete("a", result(90, 50.0))
    assert [t.state for t in study.trials] == [TrialState.WAITING]


def test_a_trial_at_its_last_step_is_told_as_complete(study: optuna.Study) -> None:
    s = searcher(study)
    s.suggest("a")
    for step, value in ((30, 10.0), (60, 30.0), (90, 20.0)):
        s.on_trial_result("a", result(step, value))
    s.on_trial_complete("a", result(90, 20.0))
    (trial,) = study.trials
    assert trial.state == TrialState.COMPLETE
    assert trial.value == 20.0
    assert trial.intermediate_values == {30: 10.0, 60: 30.0, 90: 20.0}
    assert trial.user_attrs["trial_id"] == "a"


def test_a_trial_stopped_before_its_last_step_is_told_as_pruned_with_its_values(
    study: optuna.Study,
) -> None:
    s = searcher(study)
    s.suggest("a")
    s.on_trial_result("a", result(30, 10.0))
    s.on_trial_complete("a", result(60, 12.0))  # Tune reports the last result here alone
    (trial,) = study.trials
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {30: 10.0, 60: 12.0}


@pytest.mark.parametrize(
    ("last", "error"),
    [(result(90, math.nan), False), (result(30, 10.0), True), (None, False), (None, True)],
)
def test_an_error_or_a_value_that_is_no_number_is_told_as_failed(
    study: optuna.Study, last: dict[str, float] | None, error: bool
) -> None:
    s = searcher(study)
    s.suggest("a")
    if last is not None:
        s.on_trial_result("a", last)
    s.on_trial_complete("a", last, error=error)
    assert study.trials[0].state == TrialState.FAIL
    assert s.suggest("b") is not None  # the search goes on


def test_what_was_running_is_taken_up_again_after_a_restore(
    study: optuna.Study, tmp_path: Path
) -> None:
    s = searcher(study, trials=3, references=("ft",))
    s.suggest("reference")
    s.suggest("a")
    s.save(str(tmp_path / "state"))
    again = create_study(tmp_path, "test", SamplerConfig(), OBJECTIVE)
    restored = searcher(again, trials=3, references=("ft",))
    restored.restore(str(tmp_path / "state"))
    restored.on_trial_complete("a", result(90, 42.0))
    assert [t.value for t in again.trials if t.state == TrialState.COMPLETE] == [42.0]
    assert [isinstance(restored.suggest(f"t{i}"), dict) for i in range(3)] == [True, True, False]


def test_a_pickled_searcher_opens_its_study_again(tmp_path: Path) -> None:
    open_study = partial(create_study, tmp_path, "test", SamplerConfig(), OBJECTIVE)
    s = OptunaSearcher(SPACE, open_study, OBJECTIVE, total_steps=90, trials=4)
    s.suggest("a")
    copy = pickle.loads(pickle.dumps(s))
    copy.on_trial_complete("a", result(90, 42.0))
    assert [t.value for t in open_study().trials] == [42.0]
