"""Averaged weights, of `eval.ema` and of EMA, against the sum that they come to."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.curves import curve, short
from tests.trainers.methods import by_open_clip
from tests.trainers.methods.by_hand import cross_entropy
from trainers.checkpoints.format import WEIGHTS
from trainers.config import with_overrides
from trainers.errors import ConfigError
from trainers.fine_tune import fine_tune
from trainers.loop.training import start

DECAY = 0.6


@pytest.fixture
def averaged(trial):
    config = short(trial, "ft", steps=4, eval__every=1, optim__lr=3e-3, precision="fp32")
    return with_overrides(config, {"eval.ema": DECAY}, "test")


def test_the_average_is_evaluated_and_saved(averaged, tmp_path):
    points = [{n: v.clone() for n, v in start(averaged).student.weights.items()}]
    for report in fine_tune(averaged):
        points.append({n: v.clone() for n, v in report.training.student.weights.items()})
        if report.step == 3:
            report.save(tmp_path)
            break
    d = DECAY
    shares = [d**3, (1 - d) * d**2, (1 - d) * d, 1 - d]
    kept = load_file(tmp_path / WEIGHTS)
    for name in points[0]:
        tensors = [point[name].double().numpy() for point in points]
        average = sum(share * w for share, w in zip(shares, tensors, strict=True))
        np.testing.assert_allclose(kept[name].numpy(), average, rtol=0, atol=2e-7)
    images, labels = by_open_clip.images_of(averaged)
    of_average = cross_entropy(by_open_clip.logits(images, kept), labels)
    assert report.metrics["id_val/nll"] == pytest.approx(of_average, rel=1e-4)
    of_raw = cross_entropy(by_open_clip.logits(images, kept | points[-1]), labels)
    assert abs(of_average - of_raw) > 1e-2


def test_ema_is_ft_with_the_average(averaged):
    ema = {"method": {"name": "ema", "ema_decay": DECAY}}
    alone = with_overrides(averaged, {"eval.ema": None, **ema}, "test")
    assert curve(alone) == curve(averaged)
    with pytest.raises(ConfigError, match="'ema' has a moving average of its own"):
        with_overrides(averaged, ema, "test")


def test_wise_ft_interpolates_towards_the_average(averaged):
    method = {"method": {"name": "wise_ft", "alpha": 0.5}}
    report = next(fine_tune(with_overrides(averaged, method, "test")))
    training = report.training
    for name, value in report.evaluated.weights.items():
        assert torch.equal(value, torch.lerp(training.initial[name], training.ema[name], 0.5))
