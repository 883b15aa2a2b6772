"""Epochs in place of steps, and another method without the settings of the one before."""

import pyarrow.dataset as ds
import pytest

from trainers.config import TrialConfig, with_overrides
from trainers.errors import ConfigError, validate
from trainers.methods.ft import FineTuning
from trainers.methods.kd import Distillation
from trainers.methods.lipsum_ft import LipsumFineTuning


def trial(root, **values):
    return {"data": {"root": str(root), "ood_domains": ["sketch"]}, **values}


def test_epochs_become_the_steps_that_have_so_many_images(images_root, caplog):
    images = ds.dataset(images_root / "real" / "train").count_rows()
    values = trial(images_root, epochs=2.5, optim={"batch_size": 7})
    config = TrialConfig.model_validate(values)
    assert config.steps == round(2.5 * images / 7)
    assert config == TrialConfig.model_validate(config.model_dump(mode="json"))
    assert caplog.messages == [f"epochs = 2.5: {config.steps} steps of 7 of {images} images"]
    assert TrialConfig.model_validate(trial(images_root, epochs=1e-6)).steps == 1


@pytest.mark.parametrize(
    ("values", "problem"), [({"steps": 5}, "steps is given, too"), ({}, "no such folder")]
)
def test_epochs_without_images_or_beside_steps_are_refused(values, problem, images_root, tmp_path):
    root = images_root if values else tmp_path / "nowhere"
    with pytest.raises(ConfigError, match=problem):
        validate(TrialConfig, trial(root, epochs=2, **values), "test")


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
