"""What a new search takes over from run folders of earlier ones."""

import math
import shutil
from dataclasses import replace

import pytest

from tests.tuning import fakes
from tests.tuning.run_folders import LR, WEIGHT, ZERO_SHOT, search_file, trial, write_run
from trainers.errors import ConfigError
from tuning.algorithms.studies import TRIAL_ID, create_studies
from tuning.algorithms.warm_start import load_earlier, warm_start
from tuning.runs.history import JOURNAL_FILE
from tuning.runs.records import METHOD_KEY
from tuning.runs.run_folder import search_record

PRUNED = trial(1, 84.0, 61.5, lr=3e-4)
PRUNED = replace(PRUNED, outcome="pruned", curve=PRUNED.curve[:2])
FAILED = trial(3, 80.0, 50.0, outcome="failed", error="boom")
POINTS = {"trial__seed": 1}
"""Another trial than that of the earlier runs: its measurements do not compare."""
METHODS = {
    "search__space": {
        "methods": ["ft", "kd"],
        "parameters": {LR: {"type": "float", "low": 1e-6, "high": 1e-2, "log": True}},
    }
}


@pytest.fixture
def earlier(tmp_path):
    return tmp_path / "earlier"


@pytest.fixture
def learn(images_root, earlier):
    """Write the earlier run, over the same data by default, and start one that learns from it."""

    def learned(records, there=None, **changes):
        write_run(earlier, there or search_file(images_root), records)
        (only,), told = warm(images_root, earlier, **changes)
        return only, told

    return learned


def warm(root, *runs, **changes):
    """New studies of a search over `root` that learn from those runs, and what was told."""
    file = search_file(root, search__warm_start__runs=[str(run) for run in runs], **changes)
    folder = runs[0].parent / "new"
    folder.mkdir(exist_ok=True)
    search = search_record(file, folder, ZERO_SHOT)
    studies = create_studies(search, file.search_space(), file.search.sampler).studies
    return studies, warm_start(studies, file, search, load_earlier(file))


def waiting(study):
    """Learning rate and weight of the points that are tried first, in their order."""
    return [(point[LR], point.get(WEIGHT)) for point in study.queue]


def learning_rates(study):
    return [lr for lr, _ in waiting(study)]


def sources(study):
    return [trial.user_attrs["warm_start"] for trial in study.study.trials]


def test_over_the_same_data_what_was_measured_is_known_from_the_start(learn, earlier):
    line = "id_val/acc >= best - 0.5"
    diverged = trial(4, 85.0, 62.0)
    diverged = replace(diverged, curve=({**diverged.curve[-1], "val/mean_acc": math.nan},))
    best_id = trial(2, 86.0, 60.0, lr=2e-4)
    records = [fakes.reference(), trial(0, 85.0, 62.0), PRUNED, best_id, FAILED, diverged]
    learned, told = learn(records, search__constraints=[line])
    assert told == [f"{earlier}: 4 trials as observations"]
    learned.ask("trial-000")
    first, pruned, second, failed, _ = learned.study.trials
    states = [t.state.name for t in learned.study.trials]
    assert states == ["COMPLETE", "PRUNED", "COMPLETE", "FAIL", "RUNNING"]
    assert first.values == [(85.0 + 62.0) / 2]
    assert first.params == {LR: 1e-4, WEIGHT: 1.0}
    assert first.constraints == {line: pytest.approx(86.0 - 0.5 - 85.0)}
    assert second.constraints == {line: pytest.approx(-0.5)}
    assert pruned.intermediate_values == {
        int(point["step"]): pytest.approx(point["val/mean_acc"]) for point in PRUNED.curve
    }
    assert pruned.params[LR] == 3e-4
    names = [t.user_attrs.get("warm_start") for t in (first, pruned, second, failed)]
    assert names == [f"earlier/trial-00{number}" for number in (0, 1, 2, 4)]
    assert TRIAL_ID not in first.user_attrs  # it is not of this search


def test_the_same_data_elsewhere_give_observations(images_root, tmp_path, earlier):
    moved = shutil.copytree(images_root, tmp_path / "moved", copy_function=shutil.copy2)
    write_run(earlier, search_file(moved), [trial(0, 85.0, 62.0)])
    _, told = warm(images_root, earlier)
    assert told == [f"{earlier}: 1 trials as observations"]


@pytest.mark.parametrize("differs", ["data", "gone", "trial", "objective", "unknown"])
def test_where_figures_do_not_compare_the_best_points_are_tried_first(
    differs, images_root, tmp_path, earlier
):
    other_root = tmp_path / "other"  # the same images, but for one file that has another name
    shutil.copytree(images_root, other_root)
    file = next((other_root / "real" / "train").glob("*.parquet"))
    file.rename(file.with_name("renamed.parquet"))
    root = other_root if differs in ("data", "gone") else images_root
    records = [
        trial(0, 84.0, 61.0, lr=1e-4),
        trial(1, 86.0, 64.0, lr=2e-4),
        trial(2, 90.0, 70.0, lr=3e-4, outcome="pruned"),
        trial(3, 85.0, 62.0, lr=4e-4),
    ]
    write_run(earlier, search_file(root, trial__seed=int(differs == "trial")), records)
    if differs == "unknown":
        (earlier / "environment.json").unlink()
    if differs == "gone":
        shutil.rmtree(other_root)
    metric = "ood_val/mean_acc" if differs == "objective" else "val/mean_acc"
    changes = {"search__warm_start__top": 2, "search__objective": {"metric": metric}}
    (study,), told = warm(images_root, earlier, **changes)
    saw_ood = "(chosen with OOD validation data)"
    assert told == [f"{earlier}: its best 2 points are tried first {saw_ood}"]
    assert waiting(study) == [(2e-4, 1.0), (4e-4, 1.0)]
    assert study.study.trials == []


@pytest.mark.parametrize("changes", [{}, POINTS])
def test_what_lies_outside_of_the_space_is_left_out(changes, images_root, earlier, learn):
    records = [trial(0, 86.0, 62.0, lr=1e-3), trial(1, 85.0, 61.0, lr=1e-4)]
    space = search_file(images_root).search_space().model_dump()["parameters"]
    narrow = {**space, LR: {**space[LR], "high": 5e-4}}
    study, _ = learn(records, search__space__parameters=narrow, **changes)
    assert (sources(study), learning_rates(study)) == (
        ([], [1e-4]) if changes else (["earlier/trial-001"], [])
    )
    wide = {**narrow, "optim.weight_decay": {"type": "float", "low": 0.0, "high": 0.1}}
    changes = {"search__space__parameters": wide, "search__space__initial_points": []}
    with pytest.raises(ConfigError, match=rf"this space \({LR}, {WEIGHT}, optim.weight_decay\)"):
        warm(images_root, earlier, **changes)


def test_trials_without_a_metric_are_no_observations(learn):
    """That of the sampler, or of a constraint: the study would take them for failures."""
    known, other = trial(0, 85.0, 62.0), trial(1, 86.0, 63.0, lr=2e-4)
    curve = [{k: v for k, v in p.items() if k != "ood_val/sketch/acc"} for p in other.curve]
    other = replace(other, curve=tuple(curve))
    line = "ood_val/sketch/acc >= zero_shot.ood_val/sketch/acc - 5"
    study, _ = learn([known, other], search__constraints=[line])
    assert sources(study) == ["earlier/trial-000"]


def test_what_cannot_be_learned_from_is_refused(images_root, tmp_path):
    file = search_file(images_root)
    old = write_run(tmp_path / "old", file, [trial(0, 85.0, 62.0)])
    (old / JOURNAL_FILE).write_text('{"event": "created", "format": 0, "time": 1}\n')
    empty = write_run(tmp_path / "empty", file, zero_shot=None)
    pruned = write_run(tmp_path / "pruned", file, [PRUNED])
    for run, problem in (
        (tmp_path / "nowhere", "not a run folder"),
        (old, "format 0"),
        (empty, "zero-shot model has not been evaluated"),
        (pruned, "no finished or pruned trial"),
    ):
        with pytest.raises(ConfigError, match=problem) as caught:
            warm(images_root, run, **POINTS)
        assert str(run) in str(caught.value)


def of_method(method, number, id_acc, lr, **more):
    weight = {} if method == "ft" else {WEIGHT: 1.0}
    params = {METHOD_KEY: method, LR: lr, **weight}
    return fakes.trial(number, id_acc, 62.0, **{"params": params, **more})


@pytest.mark.parametrize("compares", [True, False])
def test_each_method_learns_from_the_trials_of_its_own(compares, images_root, earlier):
    line = "id_val/acc >= best - 0.5"
    records = [
        of_method("ft", 0, 88.0, 1e-4),
        of_method("ft", 1, 87.0, 2e-4, outcome="pruned"),
        of_method("kd", 2, 85.0, 2e-4),
        of_method("kd", 3, 84.0, 3e-4),
        of_method("l2_sp", 4, 86.0, 3e-4),
    ]
    write_run(earlier, search_file(images_root, **METHODS), records)
    changes = {"search__constraints": [line], **({} if compares else POINTS)}
    (ft, kd), told = warm(images_root, earlier, **METHODS, **changes)
    if compares:
        assert told == [
            f"{earlier}: ft: 2 trials as observations",
            f"{earlier}: kd: 2 trials as observations",
        ]
        assert sources(ft) == ["earlier/trial-000", "earlier/trial-001"]
        assert kd.study.trials[0].params == {LR: 2e-4, WEIGHT: 1.0}
        kd.ask("trial-000")  # the best is that of the method: of all, it would be 88
        found = [t.constraints[line] for t in kd.study.trials if t.constraints]
        assert found == pytest.approx([-0.5, 0.5])
    else:
        assert (waiting(ft), waiting(kd)) == ([(1e-4, None)], [(2e-4, 1.0), (3e-4, 1.0)])


@pytest.mark.parametrize("searched", ["kd", "lipsum_ft"])
def test_a_method_learns_from_a_search_of_it_alone_and_back(searched, images_root, earlier):
    alone = {"trial__method": {"name": searched}}
    write_run(earlier, search_file(images_root, **alone), [trial(0, 85.0, 62.0)])
    if searched == "lipsum_ft":  # with parameters of the same names
        with pytest.raises(ConfigError, match=r"parameters of one of these methods \(ft, kd\)"):
            warm(images_root, earlier, **METHODS)
        return
    # Whatever the base trial's own method is, kd would measure the same.
    (ft, kd), told = warm(images_root, earlier, **METHODS)
    assert told == [f"{earlier}: kd: 1 trials as observations"]
    assert (len(ft.study.trials), len(kd.study.trials)) == (0, 1)
    records = [of_method("l2_sp", 0, 88.0, 1e-4), of_method("kd", 1, 85.0, 2e-4)]
    several = write_run(earlier.parent / "several", search_file(images_root, **METHODS), records)
    (study,), _ = warm(images_root, several, **alone)
    assert sources(study) == ["several/trial-001"]


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
