"""L2-SP's distance against sums over entries, and over which weights it is taken."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.trainers.methods.by_hand import at, cross_entropy, scored
from tests.trainers.methods.by_open_clip import logits, take_step
from trainers.methods.base import Batch
from trainers.methods.l2_sp import L2SP

SHAPES = {"head": (3, 4), "visual.proj": (2, 4), "visual.scale": ()}


def test_loss_and_its_gradients_equal_the_sum_of_squares(zero_shot):
    rng = np.random.default_rng(0)
    now = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    before = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    weights = {name: nn.Parameter(torch.tensor(value)) for name, value in now.items()}
    initial = {name: torch.tensor(value) for name, value in before.items()}
    scores, features = torch.tensor(rng.standard_normal((2, 3))), torch.zeros(2, 4)
    step = replace(at(zero_shot, 1, weights=weights), initial=initial)

    loss = L2SP(reg_weight=0.3).loss(Batch(torch.tensor([0, 2]), scored(scores, features)), step)
    loss.total.backward()

    distance = 0.0
    for name, value in now.items():
        for a, b in zip(np.ravel(value), np.ravel(before[name]), strict=True):
            distance += (a - b) ** 2
    assert loss.reg.item() == pytest.approx(distance, rel=1e-12)
    task = cross_entropy(scores.numpy(), [0, 2])
    assert loss.task.item() == pytest.approx(task, rel=1e-12)
    assert loss.total.item() == pytest.approx(task + 0.3 * distance, rel=1e-12)
    for name, parameter in weights.items():
        assert parameter.grad is not None
        by_hand = 0.3 * 2 * (now[name] - before[name])
        np.testing.assert_allclose(parameter.grad.numpy(), by_hand, rtol=1e-12)


def test_a_run_penalises_all_parameters_from_zero_shot(trial):
    taken = take_step(trial, {"name": "l2_sp", "reg_weight": 0.3})
    zero_shot = taken.run.zero_shot
    initial = {"head": zero_shot.head}
    initial |= {f"visual.{name}": p.detach() for name, p in zero_shot.visual.named_parameters()}
    squares = {
        name: float((taken.weights[name].double() - before.double()).square().sum())
        for name, before in initial.items()
    }
    assert squares["head"] > 1e-2
    assert taken.reg == pytest.approx(sum(squares.values()), rel=1e-5)
    task = cross_entropy(logits(taken.images, taken.weights), taken.labels)
    assert taken.loss == pytest.approx(task + 0.3 * sum(squares.values()), rel=1e-5)
