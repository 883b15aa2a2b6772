from tuning.views.formatting import format_params, short_names


def test_parameters_have_short_names_unless_these_collide():
    keys = ["method.name", "optim.lr", "method.lr", "method.reg_weight"]
    assert short_names(keys) == ["method", "optim.lr", "method.lr", "reg_weight"]
    params = {"method.name": "kd", "optim.lr": 1.234567e-5, "seed": 3}
    assert format_params(params) == "method=kd lr=1.23e-05 seed=3"
    assert format_params(params, but=["seed", "method.name"]) == "lr=1.23e-05"
