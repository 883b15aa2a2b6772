"""Epochs in place of steps."""

import pyarrow.dataset as ds
import pytest

from trainers.config import TrialConfig
from trainers.errors import ConfigError, validate


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
