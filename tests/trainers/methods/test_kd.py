"""KD's divergence against sums over classes, and the logits that it is taken of."""

import pytest

from tests.trainers.methods import by_open_clip
from tests.trainers.methods.by_hand import cross_entropy, divergence


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
