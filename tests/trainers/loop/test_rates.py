"""The first learning rate; those of layers, by how far Adam's first step moves each."""

import re

import pytest

from tests.trainers.curves import short
from trainers.config import first_learning_rate
from trainers.fine_tune import fine_tune

ONE_STEP = {"steps": 1, "eval__every": 1, "optim__lr": 1e-3, "optim__warmup_fraction": 0.0}


def test_the_first_learning_rate_is_the_published_one_of_vit_b16():
    assert first_learning_rate(86_192_640, 5000) == 1e-5
    assert first_learning_rate(86_192_640 // 4, 5000) == 2e-5
    assert first_learning_rate(86_192_640, 5000 // 4) == 2e-5


def moved(trial, method, **optim):
    """The largest change of each weight in one step, in units of the learning rate."""
    (report,) = fine_tune(short(trial, method, **ONE_STEP, **optim))
    initial = report.training.initial
    return {
        n: (v - initial[n]).abs().max().item() / 1e-3
        for n, v in report.training.student.weights.items()
    }


def height(name):
    """Layers above a weight of tiny-clip, whose image encoder has five blocks, its text two."""
    if block := re.search(r"resblocks\.(\d+)", name):
        return (5 if name.startswith("visual") else 2) - int(block[1])
    is_below = re.search(r"conv1|embedding|ln_pre", name)
    return 0 if not is_below else 6 if name.startswith("visual") else 3


@pytest.mark.parametrize("method", ["ft", "flyp"])
def test_the_rate_falls_from_layer_to_layer_of_each_encoder(method, trial):
    found = moved(trial, method, optim__layer_decay=0.5, optim__head_lr_factor=4.0)
    assert found.pop("head", 4) == pytest.approx(4, rel=0.01)  # of FLYP, none trains
    assert len({height(name) for name in found}) == 7
    for name, change in found.items():
        assert change == pytest.approx(0.5 ** height(name), rel=0.02), name
