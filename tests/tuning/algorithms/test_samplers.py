"""What every sampler does, those of a configuration and objects of Optuna alike."""

import warnings

import optuna
import pytest
from optuna.samplers import CmaEsSampler, GridSampler

from search_spaces import Categorical, Float, Int, SearchSpace
from tests.tuning import fakes
from tests.tuning.sessions import Session
from tuning.algorithms.samplers import GP_TRIALS, resolve_sampler
from tuning.config.schema import SamplerConfig
from tuning.log.history import History

LR, LENGTH, FIXED = "optim.lr", "method.text_length", "precision"
PARAMETERS = {
    LR: Float(low=1e-5, high=1e-2, log=True),
    LENGTH: Int(low=2, high=16),
    FIXED: Categorical(choices=("fp32",)),
}
FIRST = {LR: 1e-4, LENGTH: 8, FIXED: "fp32"}
SPACE = SearchSpace(parameters=PARAMETERS)
NAMED = ("gp", "tpe", "random", "grid")
OBJECTS = {
    "cma_es": lambda seed: CmaEsSampler(
        seed=seed, n_startup_trials=3, warn_independent_sampling=False
    ),
    "grid_object": lambda seed: GridSampler(
        {LR: [1e-4, 1e-3], LENGTH: [2, 3, 5, 8, 9, 16], FIXED: ["fp32"]}, seed
    ),
}
ALL = (*NAMED, *OBJECTS)
TRIALS = 11


@pytest.fixture
def search(tmp_path):
    return fakes.Search(tmp_path)


def session(search, name, seed=3, space=SPACE, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name in OBJECTS:
            return Session(search, space, sampler=OBJECTS[name](seed), **options)
        settings = {"name": name, "seed": seed, "startup_trials": 3, "grid_points": 4}
        return Session(search, space, **settings, **options)


def one_more(running):
    """Params of one more trial; every fourth is pruned, every fifth fails."""
    record = running.start()
    number, params = record.number, record.params
    if number % 5 == 4:
        running.end(record.trial_id, error=True)
        return params
    value = 50.0 - abs(params[LENGTH] - 9) - 1000 * params[LR]
    is_pruned = number % 4 == 3
    running.report(record.trial_id, 60, value - 5, goes_on=not is_pruned)
    if not is_pruned:
        running.report(record.trial_id, fakes.TOTAL_STEPS, value)
    running.end(record.trial_id)
    return params


def uninterrupted(folder, name, seed=3):
    folder.mkdir()
    with session(fakes.Search(folder, history=History(run_id="id")), name, seed) as running:
        return [one_more(running) for _ in range(TRIALS)]


@pytest.mark.parametrize("name", ALL)
def test_proposals_are_inside_and_follow_from_the_seed(name, tmp_path):
    found = uninterrupted(tmp_path / "one", name)
    for params in found:
        assert params[LR] * (1 + 1e-9) >= 1e-5
        assert params[LR] <= 1e-2 * (1 + 1e-9)
        assert params[LENGTH] in range(2, 17)
        assert params[FIXED] == "fp32"
    assert found == uninterrupted(tmp_path / "again", name)
    others = uninterrupted(tmp_path / "other", name, seed=4)
    assert (found == others) == (name == "grid")
    assert len({tuple(params.values()) for params in found}) == TRIALS


@pytest.mark.parametrize("name", NAMED)
def test_a_resumed_search_proposes_what_it_would_have_proposed(name, tmp_path, search):
    expected = uninterrupted(tmp_path / "whole", name)
    found = []
    for number in (2, 1, 4, TRIALS - 7):
        with session(search, name) as running:
            found += [one_more(running) for _ in range(number)]
    assert found == expected


@pytest.mark.parametrize("name", [name for name in ALL if name != "grid"])
def test_first_points_come_before_all_proposals(name, search):
    space = SPACE.model_copy(update={"initial_points": [FIRST, {**FIRST, LENGTH: 9}]})
    found = []
    for _ in range(2):
        with session(search, name, space=space) as running:
            found.append(running.start())
            running.end(found[-1].trial_id, error=True)
            assert running.studies.num_waiting == 2 - len(found)
    with session(search, name, space=space) as running:
        found.append(running.start())
    assert [record.params for record in found[:2]] == [FIRST, {**FIRST, LENGTH: 9}]
    assert [record.is_first_point for record in found] == [True, True, False]


@pytest.mark.parametrize("name", ["grid", "grid_object"])
def test_a_grid_is_tried_once_and_ends_the_search(name, search):
    run = []
    # The second session goes on with the remaining points; an object does not know which these are.
    for trials in (5, 100) if name == "grid" else (100,):
        with session(search, name, trials=trials) as running:
            while (record := running.run(1.0)) is not None:
                run.append(record.params)
    points = {tuple(params.values()) for params in run}
    assert len(points) == len(run) == {"grid": 4 * 4, "grid_object": 2 * 6}[name]
    assert sorted({p[LENGTH] for p in run}) == {"grid": [2, 7, 11, 16]}.get(
        name, [2, 3, 5, 8, 9, 16]
    )


def test_a_grid_may_have_more_points_than_fit_into_memory(search):
    space = SearchSpace(parameters={f"{LR}{n}": SPACE.parameters[LR] for n in range(9)})
    with Session(search, space, name="grid", grid_points=1000) as running:
        first, second = running.start().params, running.start().params
    assert [key for key in first if first[key] != second[key]] == [f"{LR}8"]


def test_optunas_own_stop_still_raises():
    """Once it does not, the replacement of `Study.stop` can go."""
    with pytest.raises(RuntimeError, match=r"Study\.stop"):
        optuna.create_study().stop()


@pytest.mark.parametrize(
    ("choices", "trials", "objectives", "name", "startup_trials"),
    [
        (("fp32",), 20, 1, "gp", 4),
        (("fp32",), GP_TRIALS, 1, "gp", 4),
        (("fp32",), GP_TRIALS + 1, 1, "tpe", 6),
        (("fp32", "bf16"), 20, 1, "tpe", 6),
        (("fp32",), 20, 2, "tpe", 6),
    ],
)
def test_auto_is_gp_for_small_searches_over_numbers(
    choices, trials, objectives, name, startup_trials
):
    space = SearchSpace(parameters={**PARAMETERS, FIXED: Categorical(choices=choices)})
    found = resolve_sampler(SamplerConfig(), space, trials, objectives)
    assert (found.name, found.startup_trials) == (name, startup_trials)
    given = SamplerConfig(name="tpe", startup_trials=9)
    assert resolve_sampler(given, space, trials, objectives) == given
