"""What a new search takes over from run folders of earlier ones."""

import shutil
from dataclasses import replace

import pytest

from tests.tuning import fakes
from tests.tuning.run_folders import LR, WEIGHT, ZERO_SHOT, search_file, trial, write_run
from trainers.errors import ConfigError
from tuning.algorithms.studies import create_studies
from tuning.algorithms.warm_start import load_earlier, warm_start
from tuning.log.paths import JOURNAL_FILE
from tuning.log.records import METHOD_KEY
from tuning.results.goal import goal_of

PRUNED = trial(1, 84.0, 61.5, lr=3e-4)
PRUNED = replace(PRUNED, outcome="pruned", curve=PRUNED.curve[:2])
FAILED = trial(3, 80.0, 50.0, outcome="failed", error="boom")
METHODS = {
    "search__space": {
        "methods": ["ft", "kd"],
        "parameters": {LR: {"type": "float", "low": 1e-6, "high": 1e-2, "log": True}},
    }
}


@pytest.fixture
def earlier(tmp_path):
    return tmp_path / "earlier"


def warm(root, *runs, **changes):
    """New studies of a search over `root` that learn from those runs, and what was told."""
    file = search_file(root, search__warm_start__runs=[str(run) for run in runs], **changes)
    folder = runs[0].parent / "new"
    folder.mkdir(exist_ok=True)
    goal = goal_of(file, ZERO_SHOT)
    studies = create_studies(goal, file.spaces, file.search.sampler, file.most_trials, "id").studies
    return studies, warm_start(studies, file, goal, load_earlier(file))


def waiting(study):
    """Learning rate and weight of the points that are tried first, in their order."""
    return [(point[LR], point.get(WEIGHT)) for point in study.queue]


def learning_rates(study):
    return [lr for lr, _ in waiting(study)]


@pytest.mark.parametrize("metric", ["val/mean_acc", "ood_val/mean_acc"])
def test_the_best_points_are_tried_first_also_of_data_that_are_gone(
    metric, images_root, tmp_path, earlier
):
    gone = shutil.copytree(images_root, tmp_path / "gone")
    records = [
        trial(0, 84.0, 61.0, lr=1e-4),
        trial(1, 86.0, 64.0, lr=2e-4),
        trial(2, 90.0, 70.0, lr=3e-4, outcome="pruned"),
        trial(3, 85.0, 62.0, lr=4e-4),
    ]
    write_run(earlier, search_file(gone), records)
    shutil.rmtree(gone)
    changes = {"search__warm_start__top": 2, "search__objective": {"metric": metric}}
    (study,), told = warm(images_root, earlier, **changes)
    saw_ood = "(chosen with OOD validation data)"
    assert told == [f"{earlier}: its best 2 points are tried first {saw_ood}"]
    assert waiting(study) == [(2e-4, 1.0), (4e-4, 1.0)]
    assert study.study.trials == []


def test_what_lies_outside_of_the_space_is_left_out(images_root, earlier):
    records = [trial(0, 86.0, 62.0, lr=1e-3), trial(1, 85.0, 61.0, lr=1e-4)]
    space = search_file(images_root).spaces[None].model_dump()["parameters"]
    narrow = {**space, LR: {**space[LR], "high": 5e-4}}
    write_run(earlier, search_file(images_root), records)
    (study,), _ = warm(images_root, earlier, search__space__parameters=narrow)
    assert learning_rates(study) == [1e-4]
    wide = {**narrow, "optim.weight_decay": {"type": "float", "low": 0.0, "high": 0.1}}
    changes = {"search__space__parameters": wide, "search__space__initial_points": []}
    with pytest.raises(ConfigError, match=rf"this space \({LR}, {WEIGHT}, optim.weight_decay\)"):
        warm(images_root, earlier, **changes)


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
        (pruned, "no finished trial"),
    ):
        with pytest.raises(ConfigError, match=problem) as caught:
            warm(images_root, run)
        assert str(run) in str(caught.value)


def of_method(method, number, id_acc, lr, **more):
    weight = {} if method == "ft" else {WEIGHT: 1.0}
    params = {METHOD_KEY: method, LR: lr, **weight}
    return fakes.trial(number, id_acc, 62.0, **{"params": params, **more})


def test_each_method_learns_from_the_trials_of_its_own(images_root, earlier):
    records = [
        of_method("ft", 0, 88.0, 1e-4),
        of_method("ft", 1, 87.0, 2e-4, outcome="pruned"),
        of_method("kd", 2, 85.0, 2e-4),
        of_method("kd", 3, 84.0, 3e-4),
        of_method("l2_sp", 4, 86.0, 3e-4),
    ]
    write_run(earlier, search_file(images_root, **METHODS), records)
    (ft, kd), _ = warm(images_root, earlier, **METHODS)
    assert (waiting(ft), waiting(kd)) == ([(1e-4, None)], [(2e-4, 1.0), (3e-4, 1.0)])


@pytest.mark.parametrize("searched", ["kd", "lipsum_ft"])
def test_a_method_learns_from_a_search_of_it_alone_and_back(searched, images_root, earlier):
    alone = {"trial__method": {"name": searched}}
    write_run(earlier, search_file(images_root, **alone), [trial(0, 85.0, 62.0)])
    if searched == "lipsum_ft":  # with parameters of the same names
        with pytest.raises(ConfigError, match=r"parameters of one of these methods \(ft, kd\)"):
            warm(images_root, earlier, **METHODS)
        return
    (ft, kd), _ = warm(images_root, earlier, **METHODS)
    assert (waiting(ft), waiting(kd)) == ([], [(1e-4, 1.0)])
    records = [of_method("l2_sp", 0, 88.0, 1e-4), of_method("kd", 1, 85.0, 3e-4)]
    several = write_run(earlier.parent / "several", search_file(images_root, **METHODS), records)
    (study,), _ = warm(images_root, several, **alone)
    assert learning_rates(study) == [3e-4]
