"""Where a search begins."""

import math
import statistics

import pytest

from search_spaces import Categorical, Float, Int, SearchSpace
from trainers.overrides import nest
from tuning.config.schema import SearchFile
from tuning.config.validation import load_config

LR, WEIGHT, LENGTH = "optim.lr", "method.reg_weight", "method.text_length"


def points(**changes):
    """The first points of a search over Lipsum-FT's space, with dotted keys, `__` for dots."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return SearchFile.model_validate(nest(dotted, {})).spaces[None].initial_points


def test_a_search_begins_at_the_trials_own_values():
    method = {"name": "lipsum_ft", "reg_weight": 0.3}
    center, *around = points(trial__optim__lr=2e-4, trial__method=method)
    assert center == {WEIGHT: 0.3, LENGTH: 8, LR: 2e-4}
    assert len(around) == 3
    assert len({point[LR] for point in around}) == 3


def test_points_are_normal_around_the_centre_on_the_scale_of_the_range():
    center, *around = points(
        search__space__parameters={LR: {"high": 1e-3}},  # from 1e-6
        search__prior__points=2000,
        search__prior__center={LR: 10**-4.5},
        search__prior__width=0.1,
    )
    exponents = [math.log10(point[LR]) for point in around]
    assert statistics.fmean(exponents) == pytest.approx(-4.5, abs=0.03)
    assert statistics.stdev(exponents) == pytest.approx(0.3, rel=0.05)  # a tenth of 3 decades
    assert center[LR] == pytest.approx(10**-4.5)


@pytest.mark.parametrize("center", [1e-5, 1.9e-3])
@pytest.mark.parametrize("width", [0.2, 1.0])
def test_points_do_not_pile_up_on_a_bound(center, width):
    _, *around = points(
        search__space__parameters={LR: {"low": 1e-5, "high": 2e-3}},
        search__prior={"points": 500, "center": {LR: center}, "width": width},
    )
    rates = [point[LR] for point in around]
    assert all(1e-5 < rate < 2e-3 for rate in rates)
    near = sum(abs(math.log(rate / center)) < 0.2 * math.log(200) for rate in rates)
    if width == 0.2:  # half a normal distribution: 68 % within a standard deviation
        assert near / 500 == pytest.approx(0.68, abs=0.06)


def test_points_depend_on_the_seed_alone():
    assert points() == points()
    first, second = points(), points(search__sampler__seed=1)
    assert first[0] == second[0]
    assert first[1:] != second[1:]


def test_the_centre_of_a_narrowed_range_is_the_nearest_value():
    center, *around = points(search__space__parameters={LR: {"low": 2e-5}})  # the trial has 1e-5
    assert center[LR] == 2e-5
    assert all(point[LR] >= 2e-5 for point in around)


def test_a_choice_of_the_trial_is_the_centre_of_a_choice():
    parameters = {"precision": Categorical(choices=("fp32", "bf16", "auto"))}
    lr = Float(low=1e-6, high=1e-3, log=True)
    space = SearchSpace(parameters={**parameters, LR: lr})
    center, *around = points(search__space=space, search__prior__points=300)
    assert center["precision"] == "auto"
    others = sum(point["precision"] != "auto" for point in around)
    assert len(around) == 300
    assert others / 300 == pytest.approx(0.2 * 2 / 3, abs=0.05)
    # A space of choices alone has as many points as choices, each of which is tried once.
    center, *around = points(
        search__space=SearchSpace(parameters=parameters), search__prior__points=300
    )
    assert center == {"precision": "auto"}
    assert sorted(point["precision"] for point in around) == ["bf16", "fp32"]


def test_numbers_in_scientific_notation_need_no_point(tmp_path):
    # YAML 1.1 reads 1e-5, which has no point, as text.
    def first(text, *center):
        (tmp_path / "mine.yaml").write_text(f"search: {{space: {{parameters: {{{LR}: {text}}}}}}}")
        space = load_config(tmp_path / "mine.yaml", center, check=False).spaces[None]
        return space.initial_points[0]

    choices = "{type: categorical, choices: [1e-6, 2e-5, 1E+2, 3e-5]}"
    assert first(choices)[LR] == 1e-6  # the nearest to the trial's 1e-5
    assert first(choices, f"search.prior.center={{{LR}: 3e-5}}")[LR] == 3e-5
    assert first("{low: 1e-5, high: 1e-3}", f"search.prior.center={{{LR}: 2e-4}}")[LR] == 2e-4


def test_each_method_has_a_centre():
    own = {"kd": {"center": {LR: 2e-5, WEIGHT: 3.0}}}
    spaces = SearchFile.model_validate(
        nest(
            {"search.prior.center": {LR: 4e-5}},
            {"search": {"space": {"methods": ["ft", "kd"], "by_method": own}}},
        )
    ).spaces
    firsts = {method: space.initial_points[0] for method, space in spaces.items()}
    assert firsts == {"ft": {LR: 4e-5}, "kd": {LR: 2e-5, WEIGHT: 3.0}}


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        (Float(low=1e-6, high=1e-2, log=True), [1e-6, 1e-4, 1e-2]),
        (Float(low=0, high=1, step=0.25), [0, 0.5, 1]),
        (Int(low=2, high=18), [2, 10, 18]),
        (Int(low=2, high=32, log=True), [2, 8, 32]),
        (Int(low=0, high=8, step=4), [0, 4, 8]),
    ],
)
def test_positions_and_values_of_a_range_are_inverse(parameter, values):
    assert [parameter.at(unit) for unit in (0, 0.5, 1)] == pytest.approx(values)
    assert [parameter.unit(value) for value in values] == pytest.approx([0, 0.5, 1])
    assert parameter.unit(values[0] - 1) == 0 == parameter.unit(-5)
    assert parameter.at(7) == values[-1]
