"""The studies of a search that begins or resumes: earlier results, the prior, its own trials."""

import io
import shutil

import pytest
from optuna.trial import TrialState
from rich.console import Console

from tests.tuning.algorithms.test_warm_start import FAILED, PRUNED, learning_rates, waiting
from tests.tuning.run_folders import ZERO_SHOT, search_file, trial, write_run
from tuning.algorithms.warm_start import load_earlier
from tuning.runs.journal import History
from tuning.runs.run_folder import search_record
from tuning.search import SearchOptions, prepare_studies


@pytest.fixture
def earlier(tmp_path):
    return tmp_path / "earlier"


def prepared(file, folder, *records):
    """The study of a search that begins or resumes in a folder, and what is printed."""
    folder.mkdir(exist_ok=True)
    console = Console(file=io.StringIO(), width=200)
    search, history = search_record(file, folder, ZERO_SHOT, "id"), History(records)
    studies = prepare_studies(search, file, history, SearchOptions(), console, load_earlier(file))
    return studies.studies[0].study, console.file.getvalue()


def test_a_resume_is_warmed_again_and_says_nothing(images_root, tmp_path, earlier):
    write_run(earlier, search_file(images_root), [trial(0, 85.0, 62.0)])
    file = search_file(images_root, search__warm_start__runs=[str(earlier)])

    def start(*records):
        study, printed = prepared(file, tmp_path / "new", *records)
        lines = [li for li in printed.splitlines() if not li.startswith(("Sampler", "Points"))]
        return len(study.get_trials(states=(TrialState.COMPLETE,))), "".join(lines)

    assert start() == (1, f"Warm start  {earlier}: 1 trials as observations")
    assert start(trial(0, 84.0, 61.0)) == (2, "")
    shutil.rmtree(earlier)  # a resume does without it
    number, text = start(trial(0, 84.0, 61.0))
    assert number == 1
    assert str(earlier) in text


def several(number):
    """Finished trials with learning rates of 1e-4, 2e-4, ..., the best first."""
    return [trial(n, 85.0 - n, 62.0, lr=(n + 1) / 10_000) for n in range(number)]


@pytest.mark.parametrize("use", ["points", "observations"])
def test_earlier_results_replace_the_prior_but_not_given_points(
    use, images_root, tmp_path, earlier
):
    given = search_file(images_root, search__warm_start__use=use)
    write_run(earlier, given, several(6))

    def start(file):
        return learning_rates(prepared(file, tmp_path / "new")[0])

    best = [1e-4, 2e-4, 3e-4, 4e-4] if use == "points" else []
    prior = {"search__space__initial_points": None, "search__warm_start__use": use}
    assert len(start(search_file(images_root, **prior))) == 4
    runs = {"search__warm_start__runs": [str(earlier)]}
    assert start(search_file(images_root, **prior, **runs)) == best
    assert start(search_file(images_root, search__warm_start__use=use, **runs)) == [*best, 1e-5]


@pytest.mark.parametrize(
    ("records", "use", "first", "replaced"),
    [
        (several(1), "observations", 0, False),
        ([PRUNED], "observations", 0, False),
        ([*several(2), PRUNED, FAILED], "observations", 0, False),
        (several(3), "observations", 0, True),
        (several(1), "points", 1, False),
        (several(2), "points", 2, True),
    ],
)
def test_few_earlier_results_come_with_the_prior(
    records, use, first, replaced, images_root,
    tmp_path, earlier
):  # fmt: skip
    write_run(earlier, search_file(images_root), records)
    changes = {
        "search__space__initial_points": None,
        "search__sampler__startup_trials": 3,
    }
    (tmp_path / "cold").mkdir()
    alone = waiting(prepared(search_file(images_root, **changes), tmp_path / "cold")[0])
    changes["search__warm_start"] = {"runs": [str(earlier)], "use": use, "top": 2}
    file = search_file(images_root, **changes)
    found = waiting(prepared(file, tmp_path / "new")[0])
    assert found[first:] == ([] if replaced else alone)
    tried = [trial(n, 80.0, 60.0, lr=lr, weight=w) for n, (lr, w) in enumerate(found[:-1])]
    assert waiting(prepared(file, tmp_path / "new", *tried)[0]) == found[-1:]  # resumed


def test_a_prior_is_tried_at_the_beginning_only(images_root, tmp_path, earlier):

    def start(*records, **changes):
        file = search_file(images_root, **{"search__space__initial_points": None, **changes})
        study, _ = prepared(file, tmp_path / "new", *records)
        points = study.get_trials(states=[TrialState.WAITING])
        return [point.system_attrs["fixed_params"] for point in points]

    points = start()
    assert len(points) == 4
    for trials, line in (
        (6, "4 of 6 trials are first points, 2 the sampler proposes"),
        (4, "all 4 trials are first points: the sampler proposes none"),
    ):
        changes = {"search__space__initial_points": None, "search__budget__trials": trials}
        _, printed = prepared(search_file(images_root, **changes), tmp_path / "new")
        assert f"Points      {line}\n" in printed
    trials = [trial(n, 85.0, 62.0, params=point) for n, point in enumerate(points)]
    assert start(*trials[:2]) == points[2:]  # killed in its first trials
    for changes in ({}, {"search__sampler__seed": 5}):
        assert start(*trials, **changes) == []

    write_run(earlier, search_file(images_root), several(6))
    warm_started = {"search__warm_start__runs": [str(earlier)]}
    begun = trial(0, 84.0, 61.0)
    assert start(begun, **warm_started) == []
    shutil.rmtree(earlier)
    assert start(begun, **warm_started) == []
