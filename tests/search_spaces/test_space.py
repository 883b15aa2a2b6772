import optuna
import pytest
from pydantic import ValidationError

from search_spaces import Categorical, Float, Int, SearchSpace

LR = Float(low=1e-6, high=1e-3, log=True)


@pytest.mark.parametrize(
    ("low", "high", "options", "words"),
    [
        (1.0, 1.0, {}, "low=1.0 must be smaller than high=1.0"),
        (0.0, 1.0, {"log": True}, "`low > 0` must hold for `log=True`"),
        (0.0, 1.0, {"step": 0.3}, "the last is 0.9"),
        (float("nan"), 1.0, {}, "finite"),
    ],
)
def test_an_impossible_range_is_refused(low, high, options, words):
    with pytest.raises(ValidationError, match=words):
        Float.model_validate({"low": low, "high": high, **options})


@pytest.mark.parametrize("choices", [(), ("a", "b", "a"), (1, True)])
def test_choices_differ_and_there_are_some(choices):
    with pytest.raises(ValidationError, match=r"at least 1 item|twice"):
        Categorical(choices=choices)


@pytest.mark.parametrize(
    ("parameter", "value", "problem"),
    [
        (LR, 1.0, r"outside 1e-06 \.\. 0\.001"),
        (LR, "fast", "not a finite number"),
        (LR, 10**400, "not a finite number"),
        (Float(low=0, high=1, step=0.1), 0.25, r"not 0 plus a multiple of 0\.1"),
        (Int(low=0, high=9), 2.5, "not 0 plus a multiple of 1"),
        (Int(low=1, high=9, step=2), 4, "not 1 plus a multiple of 2"),
        (Categorical(choices=(1, 2)), True, "not one of 1, 2"),
    ],
)
def test_a_value_outside_is_refused(parameter, value, problem):
    with pytest.raises(ValueError, match=f"^is {problem}"):
        parameter.parse(value)


@pytest.mark.parametrize(
    ("parameter", "value", "parsed"),
    [
        (Int(low=0, high=9), 3.0, 3),  # as a file written by another tool has it
        (Float(low=0, high=1, step=0.1), 0.1 * 3, 0.1 * 3),
        (Categorical(choices=(1e-5, "x")), 1e-5, 1e-5),
    ],
)
def test_values_get_the_type_of_the_parameter(parameter, value, parsed):
    assert parameter.parse(value) == parsed
    assert type(parameter.parse(value)) is type(parsed)


def test_first_points_are_complete_and_in_the_order_of_the_space():
    parameters = {"a.real": Float(low=0, high=2), "a.whole": Int(low=0, high=9)}
    point = {"a.whole": 3.0, "a.real": 0.1}
    (found,) = SearchSpace(parameters=parameters, initial_points=[point]).initial_points
    assert list(found.items()) == [("a.real", 0.1), ("a.whole", 3)]
    for wrong in ({"a.real": 1}, {**point, "b": 1}, {**point, "a.real": 3}):
        with pytest.raises(
            ValidationError, match=r"it needs a\.real, a\.whole|a\.real=3 is outside"
        ):
            SearchSpace(parameters=parameters, initial_points=[wrong])


def test_optuna_gets_the_same_ranges_in_the_same_order():
    step = Int(low=1, high=9, step=2)
    space = SearchSpace(parameters={"c": Categorical(choices=("a", "b")), "b": step, "a": LR})
    assert list(space.distributions().items()) == [
        ("c", optuna.distributions.CategoricalDistribution(("a", "b"))),
        ("b", optuna.distributions.IntDistribution(1, 9, step=2)),
        ("a", optuna.distributions.FloatDistribution(1e-6, 1e-3, log=True)),
    ]
    assert [len(values) for values in space.grid(3).values()] == [2, 3, 3]


@pytest.mark.parametrize(
    ("keys", "words"),
    [({}, "the space is empty"), ({"parameters": {"optim lr": LR}}, "not the key of a parameter")],
)
def test_a_space_has_parameters_with_keys(keys, words):
    with pytest.raises(ValidationError, match=words):
        SearchSpace.model_validate(keys)
