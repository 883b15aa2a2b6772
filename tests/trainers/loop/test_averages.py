"""Averaged weights, of rungs, of `eval.ema` and of EMA, against the sum that they come to."""

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
from trainers.loop.state import start

STEPS = 8
EMA = {"name": "ema", "ema_decay": 0.6}


@pytest.fixture
def averaged(trial):
    config = short(trial, "ft", steps=STEPS, eval__every=1, optim__lr=3e-3, precision="fp32")
    return with_overrides(config, {"eval.rung_weights": "averaged"}, "test")


def raw(config):
    return with_overrides(config, {"eval.rung_weights": "raw"}, "test")


@pytest.mark.parametrize(
    ("settings", "d"), [({}, 1 - 4 / STEPS), ({"eval.ema": 0.7}, 0.7)], ids=["rungs", "ema"]
)
def test_the_average_is_evaluated_and_saved(settings, d, averaged, tmp_path):
    config = with_overrides(averaged, settings, "test")
    points = [{n: v.clone() for n, v in start(config).weights.items()}]
    for report in fine_tune(config):
        points.append({n: v.clone() for n, v in report.run.weights.items()})
        if report.step == 3:
            report.save(tmp_path)
            break
    shares = [d**3, (1 - d) * d**2, (1 - d) * d, 1 - d]
    kept = load_file(tmp_path / WEIGHTS)
    for name in points[0]:
        tensors = [point[name].double().numpy() for point in points]
        average = sum(share * w for share, w in zip(shares, tensors, strict=True))
        np.testing.assert_allclose(kept[name].numpy(), average, rtol=0, atol=2e-7)
    images, labels = by_open_clip.images_of(config)
    of_average = cross_entropy(by_open_clip.logits(images, kept), labels)
    assert report.metrics["id_val/nll"] == pytest.approx(of_average, rel=1e-4)
    of_raw = cross_entropy(by_open_clip.logits(images, kept | points[-1]), labels)
    assert abs(of_average - of_raw) > 1e-2


def test_the_last_step_evaluates_the_trained_weights(averaged):
    found, expected = curve(averaged), curve(raw(averaged))
    assert [report.pop("eval/averaged") for report in found] == [1.0] * (STEPS - 1) + [0.0]
    assert [report.pop("eval/averaged") for report in expected] == [0.0] * STEPS
    assert found[-1] == expected[-1]
    for report, plain in zip(found, expected, strict=True):
        assert report["train/loss"] == plain["train/loss"]
    assert found[0]["id_val/nll"] != expected[0]["id_val/nll"]


def test_ema_is_ft_with_the_average(averaged):
    """At every report, whatever the rungs of others evaluate."""
    ema = with_overrides(averaged, {"method": EMA}, "test")
    ft = with_overrides(raw(averaged), {"eval.ema": EMA["ema_decay"]}, "test")
    assert curve(ema) == curve(ft)
    with pytest.raises(ConfigError, match="'ema' has a moving average of its own"):
        with_overrides(ema, {"eval.ema": 0.5}, "test")


@pytest.mark.parametrize("average", [{}, {"eval.ema": 0.7}], ids=["rungs", "ema"])
def test_wise_ft_interpolates_towards_the_average(average, averaged):
    method = {"method": {"name": "wise_ft", "alpha": 0.5}}
    run = next(fine_tune(with_overrides(averaged, method | average, "test"))).run
    for name, value in run.eval_weights.items():
        assert torch.equal(value, torch.lerp(run.initial[name], run.ema[name], 0.5))
