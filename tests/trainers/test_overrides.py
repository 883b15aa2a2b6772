import pytest

from trainers.config import TrialConfig, with_overrides
from trainers.errors import ConfigError
from trainers.methods.ft import FineTuning
from trainers.methods.kd import Distillation
from trainers.methods.lipsum_ft import LipsumFineTuning

TRIAL = TrialConfig.model_validate(
    {"method": {"name": "lipsum_ft", "reg_weight": 0.3, "text_count": 16}, "optim": {"lr": 1e-4}}
)


@pytest.mark.parametrize(
    ("keys", "method"),
    [
        ({"method.name": "ft"}, FineTuning()),
        (
            {"method.name": "lipsum_ft", "method.reg_weight": 2.0},
            LipsumFineTuning(reg_weight=2.0, text_count=16),
        ),
        ({"method.name": "kd", "method.reg_weight": 2.0}, Distillation(reg_weight=2.0)),
        ({"method.reg_weight": 2.0, "method.name": "kd"}, Distillation(reg_weight=2.0)),
    ],
)
def test_another_method_alone_drops_the_settings_before(keys, method):
    changed = with_overrides(TRIAL, {**keys, "optim.lr": 1e-3}, "here")
    optim = TRIAL.optim.model_copy(update={"lr": 1e-3})
    assert changed == TRIAL.model_copy(update={"method": method, "optim": optim})


def test_a_setting_of_another_method_is_an_error():
    with pytest.raises(ConfigError) as caught:
        with_overrides(TRIAL, {"method.name": "ft", "method.reg_weight": 1}, "here")
    assert (caught.value.source, caught.value.key) == ("here", "method.reg_weight")
