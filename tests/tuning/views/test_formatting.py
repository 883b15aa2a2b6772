import math

from tuning.views.formatting import format_difference, format_mean, format_params, short_names


def test_parameters_have_short_names_unless_these_collide():
    keys = ["method.name", "optim.lr", "method.lr", "method.reg_weight"]
    assert short_names(keys) == ["method", "optim.lr", "method.lr", "reg_weight"]
    params = {"method.name": "kd", "optim.lr": 1.234567e-5, "seed": 3}
    assert format_params(params) == "method=kd lr=1.23e-05 seed=3"
    assert format_params(params, but=["seed", "method.name"]) == "lr=1.23e-05"


def test_a_difference_is_bold_if_its_interval_excludes_zero():
    text = format_difference(1.5, 0.4, 2.6)
    assert (text.plain, text.style) == ("+1.5\n[+0.4, +2.6]", "bold")
    assert format_difference(1.5, -0.4, 3.4).style == ""
    assert format_difference(1.5, math.nan, math.nan).plain == "+1.5"
    assert (format_mean(70.0, 1.25), format_mean(70.0, math.nan)) == ("70.0 ± 1.2", "70.0")
