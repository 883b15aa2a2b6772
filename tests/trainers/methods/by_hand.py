"""What losses are checked against: NumPy in float64, sums written out, gradients by differences."""

import numpy as np
import torch

from trainers.config import TrialConfig
from trainers.loop.setup import Setup
from trainers.methods.base import Batch, Step
from trainers.models.student import Outputs


def log_softmax(row):
    """Of one row of logits."""
    largest = max(row)
    return row - largest - np.log(sum(np.exp(value - largest) for value in row))


def cross_entropy(logits, labels):
    """Of logits (B, K), the mean over the rows."""
    found = [log_softmax(row)[label] for row, label in zip(logits, labels, strict=True)]
    return -float(sum(found)) / len(found)


def divergence(before, after):
    """KL(softmax(before) || softmax(after)) of logits (B, K), the mean over the rows."""
    total = 0.0
    for p, q in zip(map(log_softmax, before), map(log_softmax, after), strict=True):
        total += sum(np.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
    return total / len(before)


def contrastive(scores):
    """FLYP's loss of scores (B, B), image by image and text by text."""
    total = 0.0
    for i in range(len(scores)):
        total -= log_softmax(scores[i, :])[i] + log_softmax(scores[:, i])[i]
    return total / (2 * len(scores))


def unit_rows(rng, *shape):
    x = rng.standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def differences(function, x):
    """The gradient of a function at x by central differences of fourth order."""
    gradient, h = np.zeros_like(x), 1e-3
    for index in np.ndindex(x.shape):
        values = []
        for offset in (-2, -1, 1, 2):
            moved = x.copy()
            moved[index] += offset * h
            values.append(function(moved))
        gradient[index] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
    return gradient


def assert_gradient(tensor, function, x):
    """The gradient of a tensor equals the one by differences of a function at its value x."""
    expected = differences(function, x).reshape(tensor.grad.shape)
    np.testing.assert_allclose(tensor.grad.numpy(), expected, rtol=1e-6, atol=1e-8)


def scored(logits, features):
    """Of logits (B, K) and features (B, D) that have nothing to do with each other."""
    one = torch.ones((), dtype=features.dtype)
    return Outputs(features, logits, features.new_zeros(0, *features.shape), one)


def at(zero_shot, number, *, steps=10, weights=None):
    """A step of a run whose trained parameters are these."""
    trained = weights or {}
    initial = {name: value.detach().clone() for name, value in trained.items()}
    config = TrialConfig(zero_shot_cache_gb=0, precision="fp32")
    setup = Setup(config, zero_shot, (), zero_shot.device)
    return Step(
        zero_shot, setup.zero_shot_features, number, steps, seed=0, weights=trained, initial=initial
    )


def random_batch(*, classes, kinds=1):
    """Of random features, all of which require gradients, in float64; scales 7, 6 and 5."""
    rng = np.random.default_rng(0)

    def of(scale):
        return Outputs(
            torch.tensor(unit_rows(rng, len(classes), 5), requires_grad=True),
            torch.zeros(len(classes), 0),
            torch.tensor(unit_rows(rng, kinds, len(classes), 5), requires_grad=True),
            torch.tensor(scale, dtype=torch.float64, requires_grad=True),
        )

    return Batch(torch.tensor(classes), student=of(7.0), zero_shot=of(6.0), average=of(5.0))
