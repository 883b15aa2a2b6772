"""SPD against a loop of PyTorch's AdamW with the projection in float64 after each step."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.trainers.curves import short
from trainers import fine_tune as loop
from trainers.data.transforms import normalise
from trainers.fine_tune import fine_tune
from trainers.loop.images import open_images
from trainers.loop.training import start

STEPS, LR = 6, 1e-3


@pytest.mark.parametrize("strength", [1, 0.3])
def test_a_run_equals_adamw_with_the_projection_after_each_step(strength, trial):
    """Adam's eps is above rounding, for gradients that are 0."""
    settings = {"lr": LR, "eps": 1e-3, "warmup_fraction": 0, "weight_decay": 0.1}
    optim = {f"optim__{name}": value for name, value in settings.items()}
    method = {"name": "spd", "strength": strength}
    config = short(trial, method, steps=STEPS, eval__every=STEPS, **optim)
    (report,) = fine_tune(config)

    training = start(config)
    trained = training.student.trained
    optimizer = torch.optim.AdamW(trained.values(), eps=1e-3, weight_decay=0.1)
    images, projected, kept = open_images(config.data, "real", "train"), 0, 0
    for number, (views, labels) in enumerate(loop.training_batches(training, images)):
        outputs = training.student(normalise(views, training.setup.zero_shot.image_input))
        optimizer.zero_grad()
        functional.cross_entropy(outputs.logits, labels).backward()
        before = {name: p.detach().double().numpy().copy() for name, p in trained.items()}
        optimizer.param_groups[0]["lr"] = LR * (1 + np.cos(np.pi * number / STEPS)) / 2
        optimizer.step()
        for name, parameter in trained.items():
            zero_shot = training.initial[name].double().numpy()
            now, moved = parameter.detach().double().numpy(), before[name] - zero_shot
            length = np.sqrt(((now - zero_shot) ** 2).sum())
            share = 1 - np.sqrt((moved**2).sum()) / length
            if (parameter.grad.double().numpy() * moved).sum() > 0 and share > 0:
                now = now - strength * share * (now - zero_shot)
                projected += 1
            else:
                kept += 1
            with torch.no_grad():
                parameter.copy_(torch.tensor(now))

    assert projected > 10
    assert kept > 10
    for name, value in report.training.student.weights.items():
        torch.testing.assert_close(value, trained[name].detach(), rtol=0, atol=2e-5, msg=name)
