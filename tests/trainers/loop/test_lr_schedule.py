import math

import pytest

from trainers.config import OptimConfig
from trainers.loop.lr_schedule import learning_rate


def test_the_learning_rate_warms_up_and_decays_as_a_cosine():
    optim = OptimConfig(lr=2.0, warmup_fraction=0.1)
    rates = [learning_rate(step, 100, optim) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(2.0 * 0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert learning_rate(100, 100, optim) == pytest.approx(0.0)
