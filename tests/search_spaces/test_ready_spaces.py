import math

import pytest

from search_spaces import METHODS, SPACES, Float
from tuning.config.schema import SearchFile

# The values of each method's authors, as far as their paper or code was read.
AUTHORS = {
    "ft": {"optim.lr": 1e-5},
    "wise_ft": {"method.alpha": 0.5},
    "tpgm": {"method.projection_lr": 1e-2},
    "l2_sp": {"method.reg_weight": 0.01},
    "lipsum_ft": {"method.reg_weight": 1.0, "method.text_length": 8, "optim.lr": 1e-5},
    "lipsum_ft_text_count": {
        "method.reg_weight": 1.0,
        "method.text_length": 8,
        "optim.lr": 1e-5,
        "method.text_count": 80,
    },
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


def center(name):
    """Where a search over a ready space begins, if the trial has all defaults."""
    method = next(m for m in (name, "lipsum_ft") if m in METHODS)
    values = {"trial": {"method": {"name": method}}, "search": {"space": {"name": name}}}
    return SearchFile.model_validate(values).search_space().initial_points[0]


@pytest.mark.parametrize("name", AUTHORS)
def test_a_search_begins_at_what_the_authors_use(name):
    assert AUTHORS[name].items() <= center(name).items()


@pytest.mark.parametrize("name", SPACES)
def test_the_learning_rate_has_a_wide_log_range(name):
    lr = SPACES[name].parameters["optim.lr"]
    assert isinstance(lr, Float)
    assert lr.log
    assert math.log10(lr.high / lr.low) >= 3
    assert 0.1 < lr.unit(float(center(name)["optim.lr"])) < 0.9
