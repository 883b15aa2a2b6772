"""EMA's average against the sum that it comes to, and that it is the average that is evaluated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.curves import short
from tests.trainers.methods import by_open_clip
from tests.trainers.methods.by_hand import cross_entropy
from trainers.checkpoints.format import WEIGHTS
from trainers.config import TrialConfig
from trainers.fine_tune import fine_tune
from trainers.loop.state import start

D = 0.6


def test_the_evaluated_average_is_a_sum_with_powers_of_d(
    trial: TrialConfig, tmp_path: Path
) -> None:
    method = {"name": "ema", "ema_decay": D}
    config = short(trial, method, eval__every=1, optim__lr=3e-3, precision="fp32")
    points = [start(config).weights]
    points[0] = {name: value.clone() for name, value in points[0].items()}
    for report in fine_tune(config):
        points.append({name: value.clone() for name, value in report.run.weights.items()})
    assert len(points) == 4
    report.save(tmp_path)

    shares = [D**3, (1 - D) * D**2, (1 - D) * D, 1 - D]
    assert sum(shares) == pytest.approx(1)
    kept, deployed = load_file(tmp_path / WEIGHTS), report.run.eval_weights
    assert deployed is not None
    for name, value in deployed.items():
        raw = [point[name].double().numpy() for point in points]
        average = sum(share * w for share, w in zip(shares, raw, strict=True))
        np.testing.assert_allclose(value.numpy(), average, rtol=0, atol=2e-7)
        assert torch.equal(kept[name], value)
    assert not torch.equal(kept["head"], points[-1]["head"])

    images, labels = by_open_clip.images_of(config)
    of_average = cross_entropy(by_open_clip.logits(images, kept), labels)
    of_the_last = cross_entropy(by_open_clip.logits(images, kept | points[-1]), labels)
    assert report.metrics["id_val/nll"] == pytest.approx(of_average, rel=1e-4)
    assert abs(of_average - of_the_last) > 1e-2

    # The average does not change what trains.
    (plain,) = fine_tune(short(trial, "ft", optim__lr=3e-3, precision="fp32"))
    assert all(torch.equal(v, points[-1][name]) for name, v in plain.run.weights.items())
