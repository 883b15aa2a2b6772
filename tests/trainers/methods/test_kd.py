"""KD's divergence against sums over classes, and the logits that it is taken of."""

import numpy as np
import pytest
import torch

from tests.trainers.methods import by_open_clip
from tests.trainers.methods.by_hand import assert_gradient, at, cross_entropy, divergence, scored
from trainers.methods.base import Batch
from trainers.methods.kd import Distillation

LABELS = [0, 3, 1]


@pytest.fixture
def scores():
    """(B, K) of the zero-shot model and of the student."""
    rng = np.random.default_rng(0)
    return 3 * rng.standard_normal((3, 4)), 3 * rng.standard_normal((3, 4))


def test_loss_and_its_gradient_equal_the_sums(zero_shot, scores):
    before, now = scores
    x, features = torch.tensor(now, requires_grad=True), torch.zeros(3, 2)
    batch = Batch(
        torch.tensor(LABELS), scored(x, features), zero_shot=scored(torch.tensor(before), features)
    )
    loss = Distillation(reg_weight=0.7).loss(batch, at(zero_shot, 1))
    loss.total.backward()

    def by_hand(logits):
        return cross_entropy(logits, LABELS) + 0.7 * divergence(before, logits)

    assert loss.reg.item() == pytest.approx(divergence(before, now), rel=1e-12)
    assert loss.total.item() == pytest.approx(by_hand(now), rel=1e-12)
    assert_gradient(x, by_hand, now)


def test_both_models_use_their_own_head_and_one_scale(trial):
    taken = by_open_clip.take_step(trial, {"name": "kd", "reg_weight": 0.7})
    head, s = taken.run.zero_shot.head.double().numpy(), by_open_clip.scale()
    before = s * by_open_clip.features(taken.images) @ head.T
    now = by_open_clip.logits(taken.images, taken.weights)
    by_hand = divergence(before, now)
    assert taken.reg == pytest.approx(by_hand, rel=1e-4)
    assert taken.task == pytest.approx(cross_entropy(now, taken.labels), rel=1e-4)
    assert taken.loss == pytest.approx(taken.task + 0.7 * by_hand, rel=1e-4)
    for other in (divergence(before / s, now / s), divergence(before, now / s)):
        assert abs(other - by_hand) > 0.01 * by_hand
