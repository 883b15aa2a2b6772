"""Several methods in one search: trials in turn, and for each a study that knows its own alone."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search_spaces import Float, SearchSpace
from tests.tuning import fakes
from tuning.algorithms.method_studies import (
    Branch,
    ended_branches,
    open_branches,
    synchronise_branches,
)
from tuning.algorithms.objectives import parse_constraint
from tuning.algorithms.samplers import create_sampler
from tuning.algorithms.searcher import OptunaSearcher
from tuning.algorithms.study import TRIAL_ID
from tuning.config.schema import SamplerConfig
from tuning.runs.records import METHOD_KEY, TRIAL_KEY, SearchRecord, TrialRecord, trial_number

LR = Float(low=1e-6, high=1e-2, log=True)
WEIGHT = Float(low=0.01, high=100, log=True)
FIRST = {"optim.lr": 1e-5}


def space(*methods: str) -> SearchSpace:
    """Plain fine-tuning has its learning rate alone; the others are equal but for their names."""
    own = {"optim.lr": LR, "method.reg_weight": WEIGHT}
    weighted = SearchSpace(
        parameters=own, initial_points=[{"optim.lr": 1e-5, "method.reg_weight": 1.0}]
    )
    plain = SearchSpace(parameters={"optim.lr": LR}, initial_points=[FIRST])
    return SearchSpace(branches={m: plain if m == "ft" else weighted for m in methods})


THREE = space("ft", "kd", "l2_sp")


@pytest.fixture
def search(tmp_path: Path) -> SearchRecord:
    config = {"trial": {"method": {"name": "lipsum_ft"}}}
    return fakes.search_record(tmp_path, config=config)


def opened(
    search: SearchRecord, of: SearchSpace = THREE, url: str | None = None, **sampler: Any
) -> tuple[Branch, ...]:
    return open_branches(search, SamplerConfig(**sampler), of, url)


def resumed(
    search: SearchRecord, earlier: Sequence[TrialRecord], of: SearchSpace = THREE, **sampler: Any
) -> tuple[tuple[Branch, ...], OptunaSearcher]:
    """The branches and the searcher of a session that goes on from these trials."""
    branches = opened(search, of, **sampler)
    synchronise_branches(branches, search, earlier)
    return branches, OptunaSearcher(branches, search, earlier=earlier)


def params(proposal: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in proposal.items() if key != TRIAL_KEY}


def record(proposal: Mapping[str, Any], **changes: Any) -> TrialRecord:
    """The finished trial of a proposal, with changes."""
    number = trial_number(proposal[TRIAL_KEY])
    return fakes.trial(number, **{"params": params(proposal), **changes})


def deal(searcher: OptunaSearcher, number: int) -> list[dict[str, Any]]:
    return [searcher.suggest(f"dealt {n}") for n in range(number)]


def result(value: float, step: int = fakes.TOTAL_STEPS, **more: float) -> dict[str, float]:
    return {"step": step, "val/mean_acc": value, **more}


def methods(proposals: Sequence[Mapping[str, Any]]) -> list[str]:
    return [proposal[METHOD_KEY] for proposal in proposals]


def test_trials_go_to_the_methods_in_turn_the_first_points_of_each_first(
    search: SearchRecord,
) -> None:
    dealt = deal(OptunaSearcher(opened(search), search), 7)
    assert methods(dealt) == ["ft", "kd", "l2_sp", "ft", "kd", "l2_sp", "ft"]
    assert [p[TRIAL_KEY] for p in dealt] == [f"trial-{n:03d}" for n in range(7)]
    assert params(dealt[0]) == {METHOD_KEY: "ft", **FIRST}
    for proposal in dealt[1:3]:
        assert list(params(proposal).items())[1:] == [("optim.lr", 1e-5), ("method.reg_weight", 1)]
    assert {tuple(p) for p in dealt if p[METHOD_KEY] == "ft"} == {(TRIAL_KEY, METHOD_KEY, *FIRST)}


def test_the_budget_is_of_all_methods_together(search: SearchRecord) -> None:
    searcher = OptunaSearcher(opened(search), search, may_propose=lambda number: number < 5)
    assert len([p for p in deal(searcher, 9) if p != Searcher.FINISHED]) == 5


def after_a_crash(search: SearchRecord) -> list[TrialRecord]:
    """What the journal has of a session that ended with the driver: all that can come of a trial.

    Of seven trials dealt, one finished, one failed, one was pruned, one ended in Optuna alone, two
    were running, and the last was asked for and never started.
    """
    searcher = OptunaSearcher(opened(search), search)
    dealt = deal(searcher, 7)
    searcher.on_trial_complete("dealt 0", result(73.5))
    searcher.on_trial_complete("dealt 1", error=True)
    searcher.on_trial_complete("dealt 2", result(60.0, step=80))
    searcher.on_trial_complete("dealt 3", result(61.0, step=80))
    done = record(dealt[0])
    cut = done.curve[:2]
    return [
        done,
        record(dealt[1], outcome="failed", error="boom", curve=()),
        record(dealt[2], outcome="pruned", curve=cut),
        *(record(proposal, outcome="stopped", curve=cut) for proposal in dealt[3:6]),
    ]


def test_after_a_crash_every_trial_is_told_to_the_study_of_its_method_and_to_no_other(
    search: SearchRecord,
) -> None:
    earlier = after_a_crash(search)
    assert ended_branches(opened(search), search, earlier[3:]) == {"trial-003": "pruned"}
    branches, _ = resumed(search, earlier)
    told = {
        branch.method: {t.user_attrs[TRIAL_ID]: t.state.name for t in branch.study.trials}
        for branch in branches
    }
    assert told == {
        "ft": {"trial-000": "COMPLETE", "trial-003": "PRUNED", "trial-006": "RUNNING"},
        "kd": {"trial-001": "FAIL", "trial-004": "RUNNING"},
        "l2_sp": {"trial-002": "PRUNED", "trial-005": "RUNNING"},
    }
    for branch in branches:
        assert all(t.params.keys() == branch.space.parameters.keys() for t in branch.study.trials)


@pytest.mark.parametrize("lost", [False, True])
def test_after_a_crash_what_methods_have_been_given_differs_by_one_at_most(
    lost: bool, search: SearchRecord
) -> None:
    earlier = after_a_crash(search)
    earlier[3] = replace(earlier[3], outcome="pruned")
    if lost:  # and with it the trial that had not started
        (search.run_folder / "optuna.journal").unlink()
    branches, searcher = resumed(search, earlier)
    taken_up = [f"trial-{n:03d}" for n in (4, 5)] + ([] if lost else ["trial-006"])
    again = deal(searcher, len(taken_up))
    assert [p[TRIAL_KEY] for p in again] == taken_up
    assert again[0] == {TRIAL_KEY: "trial-004", **earlier[4].params}
    given = Counter(str(r.params[METHOD_KEY]) for r in earlier)
    given.update([] if lost else ["ft"])
    for number in range(5):
        given.update(methods([searcher.suggest(f"new {number}")]))
        assert max(given.values()) - min(given.values()) <= 1
    assert given.total() == (11 if lost else 12)
    searcher.on_trial_complete("dealt 0", result(70.0))
    state = {t.user_attrs[TRIAL_ID]: t.state for t in branches[1].study.trials}
    assert state["trial-004"] == TrialState.COMPLETE


def test_a_method_that_an_extended_search_adds_catches_up_first(search: SearchRecord) -> None:
    earlier = [record(p) for p in deal(OptunaSearcher(opened(search), search), 6)]
    _, searcher = resumed(search, earlier, space("ft", "kd", "l2_sp", "car_ft"))
    dealt = deal(searcher, 4)
    assert methods(dealt) == ["car_ft", "car_ft", "ft", "kd"]
    assert dealt[0]["method.reg_weight"] == 1.0  # its first point
    _, searcher = resumed(search, earlier, space("ft", "l2_sp"))
    assert methods(deal(searcher, 2)) == ["ft", "l2_sp"]


def test_a_search_of_one_method_can_be_extended_to_several_and_back(search: SearchRecord) -> None:
    alone = space("kd").branches["kd"]
    search = replace(search, config={"trial": {"method": {"name": "kd"}}})
    dealt = deal(OptunaSearcher(opened(search, alone), search), 2)
    assert METHOD_KEY not in dealt[0]
    earlier = [record(dealt[0]), record(dealt[1], outcome="stopped")]
    branches, searcher = resumed(search, earlier)
    assert [len(branch.study.trials) for branch in branches] == [1, 2, 1]
    more = deal(searcher, 5)
    assert more[0] == {TRIAL_KEY: "trial-001", **earlier[1].params}
    assert methods(more[1:]) == ["ft", "l2_sp", "ft", "l2_sp"]
    earlier = [earlier[0], *(record(proposal) for proposal in more)]
    (branch,), _ = resumed(search, earlier, alone)
    assert {t.user_attrs[TRIAL_ID] for t in branch.study.trials} == {"trial-000", "trial-001"}


def test_a_name_that_two_studies_gave_away_is_not_one_trial(search: SearchRecord) -> None:
    narrow = SearchSpace(
        branches={
            "ft": SearchSpace(parameters={"optim.lr": Float(low=1e-5, high=1e-4)}),
            "kd": THREE.branches["kd"],
        }
    )
    deal(OptunaSearcher(opened(search), search), 1)  # trial-000 of ft, never started
    first = OptunaSearcher(opened(search, narrow), search)
    first._hands.reverse()
    assert methods(deal(first, 1)) == ["kd"]  # trial-000 of kd, never started either
    _, searcher = resumed(search, [])
    dealt = deal(searcher, 2)
    assert [(p[TRIAL_KEY], p[METHOD_KEY]) for p in dealt] == [
        ("trial-000", "ft"),
        ("trial-001", "kd"),
    ]


def test_a_name_that_a_trial_of_another_method_was_started_under_is_given_up(
    search: SearchRecord,
) -> None:
    deal(OptunaSearcher(opened(search), search), 1)  # trial-000 of ft, never started
    of_kd = {METHOD_KEY: "kd", "optim.lr": 1e-4, "method.reg_weight": 3.0}
    branches, searcher = resumed(search, [fakes.trial(0, params=of_kd)])
    assert [t.state for t in branches[0].study.trials] == [TrialState.FAIL]
    dealt = deal(searcher, 3)
    assert [p[TRIAL_KEY] for p in dealt] == ["trial-001", "trial-002", "trial-003"]
    assert methods(dealt) == ["ft", "l2_sp", "ft"]


@pytest.mark.parametrize("kept_in", ["file", "database"])
def test_methods_with_equal_spaces_have_studies_of_their_own(
    kept_in: str, search: SearchRecord, tmp_path: Path
) -> None:
    url = None if kept_in == "file" else f"sqlite:///{tmp_path / 'optuna.db'}"
    two = space("kd", "l2_sp")
    first = opened(search, two, url)
    deal(OptunaSearcher(first, search), 2)
    again = opened(search, two, url)
    assert len({branch.study.study_name for branch in again}) == 2
    assert [len(branch.study.trials) for branch in again] == [1, 1]


def quality(proposal: Mapping[str, Any]) -> float:
    """Of ft, best at a learning rate of 1e-3; of kd, which is far worse throughout, at 1e-5."""
    best, height = (1e-3, 80.0) if proposal[METHOD_KEY] == "ft" else (1e-5, 20.0)
    return float(height - 3 * abs(math.log10(proposal["optim.lr"] / best)))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_a_method_that_is_worse_is_tuned_as_well_as_if_it_were_alone(
    sampler: str, search: SearchRecord
) -> None:
    lrs = SearchSpace(parameters={"optim.lr": LR}, initial_points=[FIRST])
    both = SearchSpace(branches={"ft": lrs, "kd": lrs})
    searcher = OptunaSearcher(opened(search, both, name=sampler), search)
    proposed: dict[str, list[float]] = {"ft": [], "kd": []}
    for number in range(60):
        proposal = searcher.suggest(str(number))
        proposed[proposal[METHOD_KEY]].append(proposal["optim.lr"])
        searcher.on_trial_complete(str(number), result(quality(proposal)))

    for method, lrs_of_it in proposed.items():  # by Optuna itself, in a study of nothing else
        alone = optuna.create_study(
            direction="maximize", sampler=create_sampler(SamplerConfig(name=sampler))
        )
        alone.enqueue_trial(FIRST)
        for lr in lrs_of_it:
            trial = alone.ask({"optim.lr": LR.to_optuna()})
            assert trial.params["optim.lr"] == lr
            value = quality({METHOD_KEY: method, **trial.params})
            trial.report(value, fakes.TOTAL_STEPS)
            alone.tell(trial, value)
    if sampler == "tpe":
        for method, best in (("ft", 1e-3), ("kd", 1e-5)):
            distances = [abs(math.log10(lr / best)) for lr in proposed[method][15:]]
            assert statistics.median(distances) < 0.7  # at random it is 1


def test_a_constraint_on_the_best_is_told_by_the_best_of_the_method(search: SearchRecord) -> None:
    line = "id_val/acc >= best - 0.5"
    search = replace(search, constraints=(parse_constraint(line, ("id_val/acc",)),))
    branches = opened(search, space("ft", "kd"))
    searcher = OptunaSearcher(branches, search)
    accuracies = [90.0, 70.0, 89.0, 71.0]
    dealt = deal(searcher, 4)
    for number, accuracy in enumerate(accuracies):
        searcher.on_trial_complete(f"dealt {number}", result(60.0, **{"id_val/acc": accuracy}))
    expected = {"ft": [-0.5, 0.5], "kd": [-0.5, -0.5]}

    def told(of: Sequence[Branch]) -> dict[str | None, list[float]]:
        complete = (TrialState.COMPLETE,)
        trials = {b.method: b.study.get_trials(states=complete) for b in of}
        return {method: [t.constraints[line] for t in own] for method, own in trials.items()}

    assert told(branches) == expected
    (search.run_folder / "optuna.journal").unlink()
    curves = [(fakes.report(fakes.TOTAL_STEPS, accuracy, 60.0),) for accuracy in accuracies]
    earlier = [record(p, curve=curve) for p, curve in zip(dealt, curves, strict=True)]
    remade, _ = resumed(search, earlier, space("ft", "kd"))
    # Told together, when the best of each is known.
    assert told(remade) == {"ft": [-0.5, 0.5], "kd": [0.5, -0.5]}


def test_each_method_has_its_grid_and_none_is_tried_twice_after_a_resume(
    search: SearchRecord,
) -> None:
    of = space("ft", "kd")
    grids = {"name": "grid", "grid_points": 2}
    dealt = deal(OptunaSearcher(opened(search, of, **grids), search), 3)
    earlier = [record(proposal) for proposal in dealt]
    _, searcher = resumed(search, earlier, of, **grids)
    dealt += deal(searcher, 3)
    assert methods(dealt) == ["ft", "kd", "ft", "kd", "kd", "kd"]  # two points, and two by two
    assert searcher.suggest("end") == Searcher.FINISHED
    points = {tuple(params(proposal).items()) for proposal in dealt}
    ends = [(lr, weight) for lr in (1e-6, 1e-2) for weight in (0.01, 100.0)]
    found = sorted((p["optim.lr"], p["method.reg_weight"]) for p in dealt if p[METHOD_KEY] == "kd")
    assert len(points) == 6
    for of_grid, end in zip(found, ends, strict=True):
        assert of_grid == pytest.approx(end)
