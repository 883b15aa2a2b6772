"""WiSE-FT's point and its whole line against weights that are interpolated in float64."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.curves import short
from tests.trainers.methods import by_open_clip
from tests.trainers.methods.by_hand import cross_entropy
from trainers.checkpoints.format import WEIGHTS
from trainers.fine_tune import fine_tune
from trainers.loop.evaluate_run import classify, holding
from trainers.loop.state import start

FAR = {"optim__lr": 3e-3, "precision": "fp32"}


def on_the_line(first, last, alpha):
    return {n: (1 - alpha) * first[n].double() + alpha * v.double() for n, v in last.items()}


def trained(trial, method, **changes):
    config = short(trial, method, **FAR, **changes)
    *_, report = fine_tune(config)
    return config, report


def test_the_interpolated_weights_are_kept_and_evaluated(trial, tmp_path):
    config, report = trained(trial, {"name": "wise_ft", "alpha": 0.3})
    _, plain = trained(trial, {"name": "ft"})
    report.save(tmp_path)
    kept, zero_shot = load_file(tmp_path / WEIGHTS), start(config).student.plain_state()
    last = plain.run.student.plain_state()
    assert all(torch.equal(v, last[n]) for n, v in report.run.student.plain_state().items())

    expected = on_the_line(zero_shot, last, 0.3)
    assert kept.keys() == expected.keys() >= {"head", "visual.proj"}
    for name, value in expected.items():
        torch.testing.assert_close(kept[name].double(), value, rtol=0, atol=2e-7)

    images, labels = by_open_clip.images_of(config)
    logits = by_open_clip.logits(images, expected)
    run = report.run
    assert run.eval_weights is not None
    run.student.eval()
    with holding(run, run.eval_weights):
        features, found = classify(run, images)
    np.testing.assert_allclose(found.numpy(), logits, atol=1e-3)
    np.testing.assert_allclose(features, by_open_clip.features(images, expected), atol=1e-5)
    nll = cross_entropy(logits, labels)
    assert report.metrics["id_val/nll"] == pytest.approx(nll, rel=1e-4)
    assert abs(nll - plain.metrics["id_val/nll"]) > 1e-2
