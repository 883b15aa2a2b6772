"""The studies of a search that begins or resumes: earlier results, the prior, its own trials."""

import io
import shutil
from contextlib import closing
from dataclasses import replace

import pytest
from optuna.trial import TrialState
from rich.console import Console

from tests.tuning import fakes
from tests.tuning.algorithms.test_warm_start import FAILED, PRUNED, learning_rates, waiting
from tests.tuning.run_folders import LR, ZERO_SHOT, search_file, trial, write_run
from tuning.algorithms.warm_start import load_earlier
from tuning.config.validation import load_settings
from tuning.log.history import read_history
from tuning.log.journal import Journal
from tuning.results.goal import goal_of
from tuning.search import SearchOptions, prepare_studies

PRIOR = {"search__space__initial_points": None}


@pytest.fixture
def earlier(tmp_path):
    return tmp_path / "earlier"


@pytest.fixture
def prepared(tmp_path):
    """The study of a search that begins or resumes in a folder, and what is printed."""

    def prepare(file, *records):
        folder = tmp_path / "new"
        shutil.rmtree(folder, ignore_errors=True)
        write_run(folder, file, records, zero_shot=None)
        console = Console(file=io.StringIO(), width=200)
        goal, history = goal_of(file, ZERO_SHOT), read_history(folder)
        options, runs = SearchOptions(), load_earlier(file)
        events = events_in(folder)
        (study,) = prepare_studies(
            goal, file, history, options, console, runs, trial_events=events
        ).studies
        return study, console.file.getvalue()

    return prepare


METHODS = ["ft", "lipsum_ft"]


def events_in(folder):
    with closing(Journal(folder)) as journal:
        return journal.trial_events


def test_a_reference_is_not_trained_again_as_a_first_point(tmp_path):
    """It is a result of its method's study, also after a kill."""
    changes = [f"search.space.methods=[{', '.join(METHODS)}]", "search.references=[ft]"]
    file = load_settings("methods", changes)
    write_run(tmp_path, file, [], zero_shot=ZERO_SHOT)

    def studies():
        goal, history = goal_of(file, ZERO_SHOT), read_history(tmp_path)
        console = Console(file=io.StringIO())
        return prepare_studies(
            goal, file, history, SearchOptions(), console, load_earlier(file),
            trial_events=events_in(tmp_path),
        )  # fmt: skip

    new, reference = studies(), file.reference_config("ft")
    found = [new.propose(number, f"trial-{number:03}") for number in range(9)]
    assert reference not in [file.trial_config(one.params) for one in found]
    assert found[0].params["method.name"] == "lipsum_ft"  # untuned FT was the first of its method
    own = [one for one in found if one.params["method.name"] == "ft"]
    assert len(own) == 4
    assert new.goes_on("ft", fakes.reference().metrics)
    new.trial_ended(fakes.reference())

    shutil.rmtree(tmp_path)
    write_run(tmp_path, file, [fakes.reference()], zero_shot=ZERO_SHOT)
    for after in (new, studies()):
        (told,) = after.studies[0].study.get_trials(states=[TrialState.COMPLETE])
        assert file.trial_config({"method.name": "ft", **told.params}) == reference
    assert reference not in [
        file.trial_config(p | {"method.name": "ft"}) for p in after.studies[0].queue
    ]


def several(number):
    """Finished trials with learning rates of 1e-4, 2e-4, ..., the best first."""
    return [trial(n, 85.0 - n, 62.0, lr=(n + 1) / 10_000) for n in range(number)]


def test_a_resume_is_warmed_again_and_says_nothing(images_root, prepared, earlier):
    write_run(earlier, search_file(images_root), several(2))
    file = search_file(images_root, search__warm_start__runs=[str(earlier)])

    def start(*records):
        study, printed = prepared(file, *records)
        lines = [li for li in printed.splitlines() if not li.startswith(("Sampler", "Points"))]
        return learning_rates(study), "".join(lines)

    saw = "(chosen with OOD validation data)"
    line = f"Warm start  {earlier}: its best 2 points are tried first {saw}"
    assert start() == ([1e-4, 2e-4, 1e-5], line)
    assert start(trial(0, 84.0, 61.0)) == ([2e-4, 1e-5], "")
    shutil.rmtree(earlier)  # a resume does without it
    rates, text = start(trial(0, 84.0, 61.0))
    assert rates == [1e-5]
    assert str(earlier) in text


def test_earlier_points_replace_the_prior_but_not_given_points(images_root, prepared, earlier):
    write_run(earlier, search_file(images_root), several(6))

    def start(**more):
        return learning_rates(prepared(search_file(images_root, **more))[0])

    best = [1e-4, 2e-4, 3e-4, 4e-4]
    runs = {"search__warm_start__runs": [str(earlier)]}
    assert len(start(**PRIOR)) == 4
    assert start(**PRIOR, **runs) == best
    assert start(**runs) == [*best, 1e-5]


@pytest.mark.parametrize(
    ("records", "first", "replaced"),
    [([*several(1), PRUNED, FAILED], 1, False), (several(2), 2, True)],
)
def test_few_earlier_points_come_with_the_prior(
    records, first, replaced, images_root, prepared, earlier
):
    write_run(earlier, search_file(images_root), records)
    changes = {**PRIOR, "search__sampler__startup_trials": 3}
    alone = waiting(prepared(search_file(images_root, **changes))[0])
    changes["search__warm_start"] = {"runs": [str(earlier)], "top": 2}
    file = search_file(images_root, **changes)
    found = waiting(prepared(file)[0])
    assert found[first:] == ([] if replaced else alone)
    tried = [trial(n, 80.0, 60.0, lr=lr, weight=w) for n, (lr, w) in enumerate(found[:-1])]
    assert waiting(prepared(file, *tried)[0]) == found[-1:]  # resumed


def test_a_prior_is_tried_at_the_beginning_only(images_root, prepared, earlier):
    def start(*records, **changes):
        return list(prepared(search_file(images_root, **PRIOR, **changes), *records)[0].queue)

    points = start()
    assert len(points) == 4
    for trials, proposed in ((6, "2"), (4, "0 (lower search.prior.points)")):
        _, printed = prepared(search_file(images_root, search__budget__trials=trials, **PRIOR))
        line = f"4 of {trials} trials are first points, the sampler proposes {proposed}"
        assert f"Points      {line}\n" in printed
    trials = [
        replace(trial(n, 85.0, 62.0), params=point, is_first_point=True)
        for n, point in enumerate(points)
    ]
    assert start(*trials[:2]) == points[2:]  # killed in its first trials
    for changes in ({}, {"search__sampler__seed": 5}):
        assert start(*trials, **changes) == []

    write_run(earlier, search_file(images_root), several(6))
    warm_started = {"search__warm_start__runs": [str(earlier)]}
    begun = trial(0, 84.0, 61.0)
    assert [point[LR] for point in start(begun, **warm_started)] == [2e-4, 3e-4, 4e-4]
    shutil.rmtree(earlier)
    assert start(begun, **warm_started) == []
