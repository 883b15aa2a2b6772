"""L2-SP's distance against sums over entries, and over which weights it is taken."""

import pytest

from tests.trainers.methods.by_hand import cross_entropy
from tests.trainers.methods.by_open_clip import logits, take_step


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
