"""What a method does to the weights is no loop over tensors: operations of a step of ViT-B/16."""

import pytest
import torch

from trainers.config import TrialConfig
from trainers.loop.fake_step import Operations, step_cost
from trainers.methods.tpgm import ProjectedFineTuning


def operations(name):
    """Of a step, with a batch of two images."""
    model = {"name": "ViT-B-16", "pretrained": "openai"}
    optim = {"batch_size": 2}
    values = {"data": {"root": "none"}, "model": model, "optim": optim, "method": {"name": name}}
    cost = step_cost(TrialConfig.model_validate(values), classes=4)
    return len(cost.of_micro_batches) + len(cost.of_optimizer)


@pytest.fixture(scope="module")
def plain():
    return operations("ft")


@pytest.mark.parametrize(("name", "more"), [("l2_sp", 60), ("spd", 60), ("autoft", 90)])
def test_a_step_takes_few_operations_more_than_plain_fine_tuning(name, more, plain):
    """Those of AutoFT are for the most part its losses of images."""
    assert plain < operations(name) <= plain + more


def test_a_step_of_tpgms_projection_takes_at_most_120_operations():
    initial = {str(number): torch.zeros(3, 4) for number in range(150)}
    trained = {name: torch.ones(3, 4) for name in initial}
    counts = []
    for steps in (1, 3):
        with Operations() as recorder, torch.no_grad():
            method = ProjectedFineTuning(projection_steps=steps)
            method.eval_weights(trained, initial, lambda weights: dict(weights))
        counts.append(len(recorder.operations))
    assert 0 < (counts[1] - counts[0]) / 2 <= 120
