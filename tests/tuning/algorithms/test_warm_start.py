"""What a new search takes over from run folders of earlier ones."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from tests.tuning import fakes
from tests.tuning.run_folders import LR, WEIGHT, ZERO_SHOT, search_file, trial, write_run
from trainers.errors import ConfigError
from tuning.algorithms.studies import TRIAL_ID, create_studies
from tuning.algorithms.warm_start import load_earlier, warm_start
from tuning.runs.journal import JOURNAL_FILE
from tuning.runs.records import METHOD_KEY
from tuning.runs.run_folder import search_record

BOTH = [{"metric": "id_val/acc"}, {"metric": "ood_val/mean_acc"}]
PRUNED = trial(1, 84.0, 61.5, lr=3e-4)
PRUNED = replace(PRUNED, outcome="pruned", curve=PRUNED.curve[:2])
SAW_OOD = "(chosen with OOD validation data)"
FAILED = trial(3, 80.0, 50.0, outcome="failed", error="boom")


Learn: TypeAlias = Callable[..., tuple[optuna.Study, list[str]]]


@pytest.fixture
def earlier(tmp_path):
    return tmp_path / "earlier"


@pytest.fixture
def learn(images_root, earlier):
    """Write the earlier run, over the same data by default, and start one that learns from it."""

    def learned(records, there=None, **changes):
        write_run(earlier, there or search_file(images_root), records)
        return warm(images_root, earlier, **changes)

    return learned


@pytest.fixture
def other_root(images_root, tmp_path):
    """The same images, but for one file that has another name."""
    root = tmp_path / "other"
    shutil.copytree(images_root, root)
    file = next((root / "real" / "train").glob("*.parquet"))
    file.rename(file.with_name("renamed.parquet"))
    return root


def warm(root, *runs, zero_shot=ZERO_SHOT, **changes):
    """A new study of a search over `root` that learns from those runs, and what it was told."""
    file = search_file(root, search__warm_start__runs=[str(run) for run in runs], **changes)
    folder = runs[0].parent / "new"
    folder.mkdir(exist_ok=True)
    search = search_record(file, folder, zero_shot)
    (only,) = new_studies(file, search)
    return only.study, warm_start([only], file, search, load_earlier(file))


def new_studies(file, search):
    storage = InMemoryStorage()
    sampler = file.search.sampler
    return create_studies(search, file.search_space(), sampler, storage, "id").studies


def waiting(study):
    """Learning rate and weight of the points that are tried first, in their order."""
    trials = study.get_trials(states=[TrialState.WAITING])
    points = [t.system_attrs["fixed_params"] for t in trials]
    return [(point[LR], point[WEIGHT]) for point in points]


def learning_rates(study):
    return [lr for lr, _ in waiting(study)]


def sources(study):
    return [trial.user_attrs["warm_start"] for trial in study.trials]


def test_over_the_same_data_what_was_measured_is_known_from_the_start(learn, earlier):
    line = "id_val/acc >= best - 0.5"
    best_id = trial(2, 86.0, 60.0, lr=2e-4)
    records = [fakes.reference(), trial(0, 85.0, 62.0), PRUNED, best_id, FAILED]
    study, told = learn(records, search__constraints=[line])
    assert told == [f"{earlier}: 3 trials as observations"]
    first, pruned, second = study.trials
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert first.values == [(85.0 + 62.0) / 2]
    assert first.params == {LR: 1e-4, WEIGHT: 1.0}
    assert first.constraints == {line: pytest.approx(86.0 - 0.5 - 85.0)}
    assert second.constraints == {line: pytest.approx(-0.5)}
    assert pruned.intermediate_values == {
        40: pytest.approx(PRUNED.curve[0]["val/mean_acc"]),
        80: pytest.approx(PRUNED.curve[1]["val/mean_acc"]),
    }
    assert pruned.params[LR] == 3e-4
    assert sources(study) == ["earlier/trial-000", "earlier/trial-001", "earlier/trial-002"]
    assert not any(TRIAL_ID in t.user_attrs for t in study.trials)  # none is of this search


def test_data_that_were_moved_are_the_same_data(images_root, tmp_path, earlier):
    write_run(earlier, search_file(images_root), [trial(0, 85.0, 62.0)])
    moved = tmp_path / "moved"
    shutil.copytree(images_root, moved)
    study, _ = warm(moved, earlier)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE]


def test_an_earlier_run_can_be_learned_from_when_its_data_are_gone(
    images_root, other_root, earlier
):
    write_run(earlier, search_file(other_root), [trial(0, 85.0, 62.0)])
    shutil.rmtree(other_root)
    study, _ = warm(images_root, earlier)
    assert learning_rates(study) == [1e-4]


@pytest.mark.parametrize("differs", ["data", "trial", "unknown"])
def test_where_figures_do_not_compare_the_best_points_are_tried_first_in_order(
    differs, images_root, other_root, earlier
):
    root = other_root if differs == "data" else images_root
    records = [
        trial(0, 84.0, 61.0, lr=1e-4),
        trial(1, 86.0, 64.0, lr=2e-4),
        trial(2, 90.0, 70.0, lr=3e-4, outcome="pruned"),
        trial(3, 85.0, 62.0, lr=4e-4),
    ]
    write_run(earlier, search_file(root, trial__seed=int(differs == "trial")), records)
    if differs == "unknown":
        (earlier / "environment.json").unlink()
    study, told = warm(images_root, earlier, search__warm_start__top=2)
    assert told == [f"{earlier}: its best 2 points are tried first {SAW_OOD}"]
    assert waiting(study) == [(2e-4, 1.0), (4e-4, 1.0)]
    assert len(study.trials) == 2
    distributions = search_file(images_root).search_space().distributions()
    assert study.ask(distributions).params[LR] == 2e-4


def test_of_several_objectives_the_front_comes_first(images_root, learn):
    records = [
        trial(0, 87.0, 59.0, lr=1e-4),  # below trial 1 in both
        trial(1, 88.0, 60.0, lr=2e-4),  # an end of the front
        trial(2, 84.9, 64.9, lr=3e-4),  # below trial 3 in both
        trial(3, 85.0, 65.0, lr=4e-4),  # the other end
        trial(4, 87.5, 64.5, lr=5e-4),  # on the front, and the nearest to the best of both
    ]
    there = search_file(images_root, search__objective=BOTH)
    study, _ = learn(records, there, search__objective=BOTH, search__warm_start__use="points")
    first, *ends, dominated = learning_rates(study)
    assert (first, set(ends)) == (5e-4, {2e-4, 4e-4})
    assert dominated in (1e-4, 3e-4)


def test_points_that_meet_the_constraints_are_tried_before_better_ones_that_do_not(learn):
    records = [trial(0, 85.0, 65.0, lr=1e-4), trial(1, 87.0, 60.0, lr=2e-4)]
    lines = ["id_val/acc >= 86"]
    study, _ = learn(records, search__constraints=lines, search__warm_start__use="points")
    assert learning_rates(study) == [2e-4, 1e-4]


def test_a_grid_goes_on_after_the_best_points(images_root, earlier):
    axes = {"type": "categorical", "choices": [1e-4, 1e-3]}
    space = {"name": None, "parameters": {LR: axes, WEIGHT: {**axes, "choices": [1.0, 2.0]}}}
    records = [trial(0, 85.0, 62.0, lr=1e-3), trial(1, 84.0, 61.0)]
    write_run(earlier, search_file(images_root), records)
    changes = {"search__sampler__name": "grid", "search__space": space}
    changes |= {"search__warm_start": {"runs": [str(earlier)], "use": "points"}}
    file = search_file(images_root, **changes)
    (earlier.parent / "new").mkdir()
    search = search_record(file, earlier.parent / "new", ZERO_SHOT)
    (only,) = new_studies(file, search)
    warm_start([only], file, search, load_earlier(file))
    asked = [only.ask(f"trial-{n:03d}").params for n in range(4)]
    assert [p[LR] for p in asked[:2]] == [1e-3, 1e-4]
    assert len({tuple(p.values()) for p in asked}) == 4
    assert not only.grid
    assert not waiting(only.study)
    (again,) = new_studies(file, search)  # after a resume, of which the study has two trials
    for point in asked[:2]:
        again.study.enqueue_trial(point)
        again.study.ask(again.space.distributions())
        assert again.grid is not None
        again.grid.remove(point)
    warm_start([again], file, search, load_earlier(file))
    assert again.grid is not None
    assert len(again.grid) == 2


def test_measurements_over_other_data_are_shifted_by_what_the_zero_shot_model_differs(
    other_root, learn
):
    line = "id_val/acc >= zero_shot.id_val/acc"
    study, _ = learn(
        [trial(0, 85.0, 62.0), PRUNED],
        search_file(other_root),
        zero_shot=fakes.report(0, 80.0, 50.0),  # it was 82.4 and 61.0: mean 71.7 becomes 65
        search__constraints=[line],
        search__warm_start__use="observations",
    )
    complete, pruned = study.trials
    assert complete.value == pytest.approx(73.5 - 6.7)
    assert complete.constraints == {line: pytest.approx(80.0 - (85.0 - 2.4))}
    assert pruned.intermediate_values[40] == pytest.approx(PRUNED.curve[0]["val/mean_acc"] - 6.7)


def test_observations_of_several_objectives_have_a_value_for_each(images_root, learn):
    study, _ = learn([trial(0, 85.0, 62.0), PRUNED], search__objective=BOTH)
    assert study.trials[0].values == [85.0, 62.0]
    assert study.trials[1].state == TrialState.PRUNED
    study.ask(search_file(images_root).search_space().distributions())


@pytest.mark.parametrize("use", ["observations", "points"])
def test_what_lies_outside_of_a_narrower_space_is_left_out(use, images_root, earlier, learn):
    records = [trial(0, 86.0, 62.0, lr=1e-3), trial(1, 85.0, 61.0, lr=1e-4)]
    space = search_file(images_root).search_space().model_dump()["parameters"]
    narrow = {**space, LR: {**space[LR], "high": 5e-4}}
    changes = {"search__space__parameters": narrow, "search__warm_start__use": use}
    study, _ = learn(records, **changes)
    assert sources(study) == ["earlier/trial-001"]
    wide = {**narrow, "optim.weight_decay": {"type": "float", "low": 0.0, "high": 0.1}}
    changes |= {"search__space__parameters": wide, "search__space__initial_points": []}
    with pytest.raises(ConfigError, match=rf"this space \({LR}, {WEIGHT}, optim.weight_decay\)"):
        warm(images_root, earlier, **changes)


def test_the_best_points_of_a_run_without_nll_are_tried_first(learn):
    records = [trial(0, 85.0, 62.0), trial(1, 86.0, 63.0, lr=2e-4)]
    study, _ = learn(records, search__sampler__metric="auto")
    assert learning_rates(study) == [2e-4, 1e-4]


@pytest.mark.parametrize("use", ["auto", "observations"])
@pytest.mark.parametrize(
    "changes",
    [
        {"search__objective": [{"metric": "id_val/acc"}, {"metric": "ood_val/sketch/acc"}]},
        {
            "search__objective": [{"metric": "id_val/acc"}],
            "search__constraints": ["ood_val/sketch/acc >= zero_shot.ood_val/sketch/acc - 5"],
        },
    ],
    ids=["objective", "constraint"],
)
def test_trials_without_all_metrics_are_no_observations(changes, use, earlier, learn):
    known, other = trial(0, 85.0, 62.0), trial(1, 86.0, 63.0, lr=2e-4)
    curve = [{k: v for k, v in p.items() if k != "ood_val/sketch/acc"} for p in other.curve]
    other = replace(other, curve=tuple(curve))
    changes = {"search__warm_start__use": use, **changes}
    study, told = learn([known, other], **changes)
    assert told == [f"{earlier}: 1 trials as observations"]
    assert sources(study) == ["earlier/trial-000"]
    assert max(study.trials[0].constraints.values(), default=0.0) <= 0
    shutil.rmtree(earlier)
    if use == "observations":
        with pytest.raises(ConfigError, match="none of its trials has id_val/acc and ood_val/ske"):
            learn([other], **changes)
    else:
        assert waiting(learn([other], **changes)[0]) == [(2e-4, 1.0)]


def test_a_diverged_trial_is_an_observation_of_a_failure(learn):
    diverged = trial(1, 85.0, 62.0)
    diverged = replace(diverged, curve=({**diverged.curve[-1], "val/mean_acc": math.nan},))
    study, _ = learn([trial(0, 85.0, 62.0), diverged])
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.FAIL]


def test_several_runs_are_all_learned_from(images_root, other_root, tmp_path):
    same = write_run(tmp_path / "same", search_file(images_root), [trial(0, 85.0, 62.0)])
    other = write_run(tmp_path / "away", search_file(other_root), [trial(0, 85.0, 62.0, lr=2e-4)])
    study, told = warm(images_root, same, other)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.WAITING]
    assert len(told) == 2


def test_what_cannot_be_learned_from_is_refused(images_root, tmp_path):
    file = search_file(images_root)
    old = write_run(tmp_path / "old", file, [trial(0, 85.0, 62.0)])
    (old / JOURNAL_FILE).write_text('{"event": "created", "format": 0, "time": 1}\n')
    empty = write_run(tmp_path / "empty", file, zero_shot=None)
    pruned = write_run(tmp_path / "pruned", file, [PRUNED])
    numberless = replace(PRUNED, curve=({"step": 40, "train/loss": math.nan},))
    silent = write_run(tmp_path / "silent", file, [numberless])
    for run, problem, use in (
        (tmp_path / "nowhere", "not a run folder", "auto"),
        (old, "format 0", "auto"),
        (empty, "none of its 0 ended trials", "auto"),
        (pruned, "no finished trial", "points"),
        (silent, "none of its trials has val/mean_acc", "observations"),
    ):
        with pytest.raises(ConfigError, match=problem) as caught:
            warm(images_root, run, search__warm_start__use=use)
        assert str(caught.value.key).startswith("search.warm_start.")
        assert str(run) in str(caught.value)


def of_method(method, number, id_acc, lr, **more):
    """A finished trial of a search of several methods."""
    weight = {} if method == "ft" else {WEIGHT: 1.0}
    params = {METHOD_KEY: method, LR: lr, **weight}
    return fakes.trial(number, id_acc, 62.0, **{"params": params, **more})


def methods_file(root, *runs, **changes):
    """A search over ft and kd, with the parameters that the searches of `run_folders` have."""
    of_all = {
        "methods": ["ft", "kd"],
        "parameters": {LR: {"type": "float", "low": 1e-6, "high": 1e-2, "log": True}},
    }
    return search_file(
        root,
        **{
            "search__space": of_all,
            "search__warm_start__runs": [str(run) for run in runs],
            **changes,
        },
    )


def warm_methods(root, *runs, **changes):
    """The new studies of such a search, and what they were told."""
    file = methods_file(root, *runs, **changes)
    folder = Path(tempfile.mkdtemp(dir=runs[0].parent))
    search = search_record(file, folder, ZERO_SHOT)
    studies = new_studies(file, search)
    told = warm_start(studies, file, search, load_earlier(file))
    return {study.method: study.study for study in studies}, told


def test_each_method_learns_from_the_trials_of_its_own(images_root, earlier):
    line = "id_val/acc >= best - 0.5"
    records = [
        of_method("ft", 0, 88.0, 1e-4),
        of_method("kd", 1, 85.0, 2e-4),
        of_method("kd", 2, 84.0, 3e-4),
        of_method("l2_sp", 3, 86.0, 3e-4),
    ]
    write_run(earlier, methods_file(images_root), records)
    studies, told = warm_methods(images_root, earlier, search__constraints=[line])
    assert told == [
        f"{earlier}: ft: 1 trials as observations",
        f"{earlier}: kd: 2 trials as observations",
    ]
    assert sources(studies["ft"]) == ["earlier/trial-000"]
    assert sources(studies["kd"]) == ["earlier/trial-001", "earlier/trial-002"]
    # The best is that of the method: of all, it would be 88.
    assert [t.constraints[line] for t in studies["kd"].trials] == pytest.approx([-0.5, 0.5])
    assert studies["kd"].trials[0].params == {LR: 2e-4, WEIGHT: 1.0}


@pytest.mark.parametrize("searched", ["kd", "lipsum_ft"])
def test_a_method_learns_from_a_search_of_it_alone(searched, images_root, earlier):
    alone = search_file(images_root, trial__method={"name": searched})
    write_run(earlier, alone, [trial(0, 85.0, 62.0)])
    if searched == "lipsum_ft":  # with parameters of the same names
        with pytest.raises(ConfigError, match=r"parameters of one of these methods \(ft, kd\)"):
            warm_methods(images_root, earlier)
        return
    # Whatever the base trial's own method is, kd would measure the same.
    studies, told = warm_methods(images_root, earlier)
    assert told == [f"{earlier}: kd: 1 trials as observations"]
    assert [len(study.trials) for study in studies.values()] == [0, 1]


def test_a_search_of_one_method_learns_from_one_of_several(images_root, earlier, learn):
    records = [
        of_method("l2_sp", 0, 88.0, 1e-4),
        of_method("kd", 1, 85.0, 2e-4),
        of_method("kd", 2, 84.0, 3e-4, outcome="failed"),
    ]
    study, told = learn(records, methods_file(images_root), trial__method={"name": "kd"})
    assert told == [f"{earlier}: 1 trials as observations"]
    assert [trial.params[LR] for trial in study.trials] == [2e-4]


def test_over_other_data_the_best_points_of_each_method_are_tried_first(
    images_root, other_root, earlier
):
    records = [
        of_method("ft", 0, 88.0, 1e-4),
        of_method("ft", 1, 87.0, 2e-4, outcome="pruned"),
        of_method("kd", 2, 84.0, 3e-4),
        of_method("kd", 3, 85.0, 4e-4),
    ]
    write_run(earlier, methods_file(other_root), records)
    studies, _ = warm_methods(images_root, earlier, search__warm_start__top=1)
    points = {
        method: [t.system_attrs["fixed_params"] for t in study.trials]
        for method, study in studies.items()
    }
    assert points == {"ft": [{LR: 1e-4}], "kd": [{LR: 4e-4, WEIGHT: 1.0}]}
    kept = [records[1], records[3]]  # no ft finished: kd learns all the same
    other = write_run(earlier.parent / "other-run", methods_file(other_root), kept)
    studies, told = warm_methods(images_root, other)
    assert told == [f"{other}: kd: its best 1 points are tried first {SAW_OOD}"]


@pytest.mark.parametrize(
    ("constraints", "said"),
    [([], "1 trials as observations"), (["id_val/acc >= best - 0.5"], "points are tried first")],
)
def test_observations_are_points_of_lines_that_were_chosen_alike(
    constraints, said, learn, images_root
):
    on_line = {"trial__eval__line": "auto"}
    there = search_file(images_root, **on_line)
    _, (told,) = learn([trial(0, 85.0, 62.0)], there, search__constraints=constraints, **on_line)
    assert said in told
