from __future__ import annotations

import math

import pytest

from search_spaces import METHODS, SPACES, Float, Value, load

FIRST: dict[str, dict[str, Value]] = {
    # As far as their authors' code or papers were read; the rest is said to be ours.
    "ft": {"optim.lr": 1e-5},
    "wise_ft": {"method.alpha": 0.5, "optim.lr": 3e-5},
    "tpgm": {"method.projection_lr": 1e-2},
    "l2_sp": {"method.reg_weight": 0.01},
    "lipsum_ft": {"method.reg_weight": 1.0, "method.text_length": 8, "optim.lr": 1e-5},
    "flyp": {"optim.lr": 1e-5},
    "star_ft": {"method.reg_weight": 0.5, "optim.lr": 1e-5},
    "carot": {
        "method.orthogonality_weight": 0.2,
        "method.distillation_weight": 1.5,
        "optim.lr": 1e-5,
    },
    "r_adapter": {
        "method.drop_rate": 0.2,
        "method.alpha": 0.5,
        "optim.lr": 5e-4,
        "method.ema_decay": 0.999,
    },
}


@pytest.mark.parametrize("name", FIRST)
def test_a_search_of_a_method_begins_with_what_its_authors_use(name: str) -> None:
    (point,) = METHODS[name]().initial_points
    assert {key: point[key] for key in FIRST[name]} == FIRST[name]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_searches_its_learning_rate_on_a_log_scale_around_the_first(name: str) -> None:
    space = load(name)
    lr = space.parameters["optim.lr"]
    (point,) = space.initial_points
    assert isinstance(lr, Float)
    assert lr.log
    assert math.log10(lr.high / lr.low) >= 3
    for bound in (lr.low, lr.high):  # at least three times more or less
        assert abs(math.log10(float(point["optim.lr"]) / bound)) > 0.5


def test_every_method_is_a_ready_space_by_its_own_name_and_plain_fine_tuning_has_nothing_else() -> (
    None
):
    assert METHODS.items() <= SPACES.items()
    assert list(load("ft").parameters) == ["optim.lr"]
