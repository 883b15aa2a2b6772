from __future__ import annotations

import pytest

from trainers.config import TrialConfig, with_overrides
from trainers.errors import ConfigError
from trainers.methods.ft import FineTuning
from trainers.methods.lipsum_ft import LipsumFineTuning
from trainers.overrides import nest, over_trial

TRIAL = TrialConfig.model_validate(
    {"method": {"name": "lipsum_ft", "reg_weight": 0.3, "text_count": 16}, "optim": {"lr": 1e-4}}
)


def test_another_method_drops_the_settings_before() -> None:
    changed = with_overrides(TRIAL, {"method.name": "ft", "optim.lr": 1e-3}, "here")
    assert changed.method == FineTuning()
    assert changed == TRIAL.model_copy(
        update={
            "method": FineTuning(),
            "optim": TRIAL.optim.model_copy(update={"lr": 1e-3}),
        }
    )


@pytest.mark.parametrize("order", [1, -1])
def test_settings_of_the_new_method_stay_in_any_order(order: int) -> None:
    keys = [("method.name", "lipsum_ft"), ("method.reg_weight", 2.0)][::order]
    of_ft = with_overrides(TRIAL, {"method.name": "ft"}, "here")
    assert with_overrides(of_ft, dict(keys), "here").method == LipsumFineTuning(reg_weight=2.0)


def test_the_same_method_keeps_its_settings() -> None:
    keys = {"method.name": "lipsum_ft", "method.reg_weight": 2.0}
    assert with_overrides(TRIAL, keys, "here").method == LipsumFineTuning(
        reg_weight=2.0, text_count=16
    )


def test_a_setting_of_another_method_is_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        with_overrides(TRIAL, {"method.name": "ft", "method.reg_weight": 1}, "here")
    assert (caught.value.source, caught.value.key) == ("here", "method.reg_weight")


def test_over_trial_nests_and_copies() -> None:
    trial = TRIAL.model_dump(mode="json")
    keys = {"optim.lr": 1.0, "method.text_count": 8}
    assert over_trial(keys, trial) == nest(keys, trial)
    over_trial({"method.name": "ft"}, trial)
    assert trial == TRIAL.model_dump(mode="json")
