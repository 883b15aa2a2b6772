"""TPGM's shares against optima in closed form, and against Adam on gradients by differences."""

import numpy as np
import pytest
import torch

from tests.trainers.methods.by_hand import differences
from trainers.methods.tpgm import ProjectedFineTuning

SHAPES = {"head": (3, 4), "visual.proj": (2, 4), "visual.scale": (), "visual.bias": (5,)}


def somewhere(seed):
    rng = np.random.default_rng(seed)
    return {name: torch.tensor(rng.standard_normal(shape)) for name, shape in SHAPES.items()}


INITIAL, WEIGHTS = somewhere(0), somewhere(1)
CHANGE = {name: value - INITIAL[name] for name, value in WEIGHTS.items()}


def shares_of(weights):
    """What share of its way each tensor has gone, all of whose entries must agree."""
    found = []
    for name, change in CHANGE.items():
        shares = ((weights[name].detach() - INITIAL[name]) / change).numpy()
        assert np.ptp(shares) < 1e-9
        found.append(float(shares.mean()))
    return np.array(found)


def test_shares_converge_to_the_optimum_within_0_and_1():
    """The nearest point to a target on the way is where the target's projection onto it is."""
    rng, wanted = np.random.default_rng(2), {}
    for (name, change), share in zip(CHANGE.items(), (0.3, 0.8, 1.7, -0.4), strict=True):
        beside = torch.tensor(rng.standard_normal(change.shape))
        beside = beside - (beside * change).sum() / change.square().sum() * change
        wanted[name] = INITIAL[name] + share * change + beside

    def distance(weights):
        return sum((value - wanted[name]).square().sum() / 2 for name, value in weights.items())

    method = ProjectedFineTuning(projection_steps=400, projection_lr=0.02)
    found = method.eval_weights(WEIGHTS, INITIAL, gradient_of(distance))
    assert shares_of(found) == pytest.approx([0.3, 0.8, 1, 0], abs=1e-3)
    torch.testing.assert_close(found["visual.scale"], WEIGHTS["visual.scale"])
    assert torch.equal(found["visual.bias"], INITIAL["visual.bias"])


def gradient_of(loss):
    def gradient(weights):
        leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
        return dict(zip(leaves, torch.autograd.grad(loss(leaves), leaves.values()), strict=True))

    return gradient


def curved(weights):
    """In which every tensor's gradient depends on all the others."""
    total = torch.stack([(value.sin() * (1 + i)).sum() for i, value in enumerate(weights.values())])
    return total.sum().sin() + 0.1 * total.square().sum()


def adam_by_differences(steps, lr):
    """The shares after so many steps of Kingma and Ba's algorithm, written out."""

    def loss(shares):
        pairs = zip(CHANGE.items(), shares, strict=True)
        return curved({n: INITIAL[n] + float(r) * change for (n, change), r in pairs}).item()

    shares, m, v = np.full(4, 0.5), np.zeros(4), np.zeros(4)
    for step in range(1, steps + 1):
        gradient = differences(loss, shares)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        corrected = v / (1 - 0.999**step)
        shares = shares - lr * m / (1 - 0.9**step) / (np.sqrt(corrected) + 1e-8)
        shares = shares.clip(0, 1)
    return shares


def test_the_projected_weights_are_evaluated():
    before = {name: value.clone() for name, value in WEIGHTS.items()}
    method = ProjectedFineTuning(projection_steps=3, projection_lr=0.03)
    found = method.eval_weights(WEIGHTS, INITIAL, gradient_of(curved))
    assert shares_of(found) == pytest.approx(adam_by_differences(3, lr=0.03), abs=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in WEIGHTS.items())
    assert not any(value.requires_grad for value in found.values())
