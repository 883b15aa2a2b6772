"""KD's divergence and L2-SP's distance against sums, and what they are taken of."""

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


def test_a_run_penalises_all_parameters_from_zero_shot(trial):
    taken = by_open_clip.take_step(trial, {"name": "l2_sp", "reg_weight": 0.3})
    zero_shot = taken.run.zero_shot
    initial = {"head": zero_shot.head}
    initial |= {f"visual.{name}": p.detach() for name, p in zero_shot.visual.named_parameters()}
    squares = {
        name: float((taken.weights[name].double() - before.double()).square().sum())
        for name, before in initial.items()
    }
    assert squares["head"] > 1e-2
    assert taken.reg == pytest.approx(sum(squares.values()), rel=1e-5)
    task = cross_entropy(by_open_clip.logits(taken.images, taken.weights), taken.labels)
    assert taken.loss == pytest.approx(task + 0.3 * sum(squares.values()), rel=1e-5)
