import optuna
import pytest
from pydantic import ValidationError

from search_spaces import Categorical, Float, Int, SearchSpace

LR = Float(low=1e-6, high=1e-3, log=True)


@pytest.mark.parametrize(
    ("low", "high", "options", "words"),
    [
        (1.0, 1.0, {}, "low=1.0 must be smaller than high=1.0"),
        (2.0, 1.0, {}, "low=2.0 must be smaller than high=1.0"),
        (0.0, 1.0, {"log": True}, "low=0.0 must be greater than 0 on a log scale"),
        (0.0, 1.0, {"step": 0.3}, "the last value is 0.9"),
        (0.0, 1.0, {"step": -0.5}, "step=-0.5 must be greater than 0"),
        (1.0, 2.0, {"step": 0.5, "log": True}, "log=true exclude each other"),
        (float("nan"), 1.0, {}, "finite"),
        (0.0, float("inf"), {}, "finite"),
    ],
)
def test_an_impossible_range_is_refused(low, high, options, words):
    with pytest.raises(ValidationError, match=words):
        Float.model_validate({"low": low, "high": high, **options})


def test_a_space_needs_a_parameter_and_a_choice_needs_a_value():
    with pytest.raises(ValidationError, match="the space is empty"):
        SearchSpace(parameters={})
    with pytest.raises(ValidationError, match="choices is empty"):
        Categorical(choices=())
    with pytest.raises(ValidationError, match="'a' twice"):
        Categorical(choices=("a", "b", "a"))


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({"optim.lr": 1.0}, r"point 1: optim\.lr=1\.0 is outside 1e-06 \.\. 0\.001"),
        ({"optim.lr": float("nan")}, "is not a finite number"),
        ({"optim.lr": "fast"}, r"optim\.lr='fast' is not a number"),
        ({}, r"point 1 lacks optim\.lr"),
        ({"optim.lr": 1e-5, "optim.rl": 1}, r"point 1 sets optim\.rl, which the space does not"),
    ],
)
def test_a_first_point_outside_the_space_is_refused(point, words):
    with pytest.raises(ValidationError, match=words):
        SearchSpace.model_validate({"parameters": {"optim.lr": LR}, "initial_points": [point]})


def test_first_points_get_types_and_order_of_the_space():
    space = SearchSpace(
        parameters={"a.real": Float(low=0, high=2), "a.whole": Int(low=0, high=9)},
        # YAML reads `1e-1` as a string; 3.0 comes back from a file written by another tool.
        initial_points=[{"a.whole": 3.0, "a.real": "1e-1"}],
    )
    (point,) = space.initial_points
    assert list(point.items()) == [("a.real", 0.1), ("a.whole", 3)]
    assert type(point["a.whole"]) is int


def test_off_grid_points_are_refused_up_to_rounding():
    grid = {"x": Float(low=0.0, high=1.0, step=0.1)}
    SearchSpace(parameters=grid, initial_points=[{"x": 0.1 * 3}])
    with pytest.raises(ValidationError, match=r"x=0\.25 is not 0 plus a multiple of 0\.1"):
        SearchSpace(parameters=grid, initial_points=[{"x": 0.25}])
    with pytest.raises(ValidationError, match=r"n=2\.5 is not a whole number"):
        SearchSpace(parameters={"n": Int(low=0, high=9)}, initial_points=[{"n": 2.5}])


def test_true_is_not_the_choice_1():
    space = {"x": Categorical(choices=(1, 2))}
    with pytest.raises(ValidationError, match="x=True is not one of 1, 2"):
        SearchSpace(parameters=space, initial_points=[{"x": True}])


def test_optuna_gets_the_same_ranges_in_the_same_order():
    space = SearchSpace(
        parameters={
            "c": Categorical(choices=("a", "b")),
            "b": Int(low=1, high=9, step=2),
            "a": LR,
        }
    )
    assert list(space.distributions().items()) == [
        ("c", optuna.distributions.CategoricalDistribution(("a", "b"))),
        ("b", optuna.distributions.IntDistribution(1, 9, step=2)),
        ("a", optuna.distributions.FloatDistribution(1e-6, 1e-3, log=True)),
    ]


BRANCHES = SearchSpace(
    branches={
        "ft": SearchSpace(parameters={"optim.lr": LR}),
        "kd": SearchSpace(
            parameters={"optim.lr": LR, "method.reg_weight": Float(low=0, high=9)},
            initial_points=[{"optim.lr": 1e-5, "method.reg_weight": 1}],
        ),
    }
)


def test_a_space_has_either_parameters_or_branches():
    branches = {"ft": SearchSpace(parameters={"optim.lr": LR})}
    with pytest.raises(ValidationError, match="cannot have parameters of its own"):
        SearchSpace(parameters={"optim.lr": LR}, branches=branches)
    with pytest.raises(ValidationError, match="'a' has branches of its own"):
        SearchSpace(branches={"a": SearchSpace(branches=branches)})
    with pytest.raises(ValidationError, match=r"'method\.name' cannot be a parameter"):
        SearchSpace(parameters={"method.name": Categorical(choices=("ft", "kd"))})
    with pytest.raises(ValidationError, match=r"point 1 sets optim\.lr"):
        SearchSpace(branches=branches, initial_points=[{"optim.lr": 1e-5}])


def test_the_order_of_branches_is_no_part_of_the_canonical_form():
    turned = SearchSpace(branches=dict(reversed(BRANCHES.branches.items())))
    assert turned.canonical() == BRANCHES.canonical()
    wider = SearchSpace(parameters={"optim.lr": Float(low=1e-7, high=1e-3, log=True)})
    other = SearchSpace(branches={**BRANCHES.branches, "ft": wider})
    renamed = SearchSpace(branches={"flyp": BRANCHES.branches["ft"], "kd": BRANCHES.branches["kd"]})
    assert len({space.canonical() for space in (BRANCHES, other, renamed)}) == 3


def test_every_parameter_and_point_is_described_under_its_branch():
    assert BRANCHES.describe() == [
        "ft",
        "  optim.lr  float 1e-06 .. 0.001, log scale",
        "kd",
        "  optim.lr           float 1e-06 .. 0.001, log scale",
        "  method.reg_weight  float 0 .. 9",
        "  first point 1      optim.lr 1e-05, method.reg_weight 1",
    ]
