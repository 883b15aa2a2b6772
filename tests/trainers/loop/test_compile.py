"""`compile` with the backend that traces as Inductor does, and then runs PyTorch's own kernels.

`tests/gpu` has Inductor itself.
"""

import pytest
from torch import nn

from tests.trainers.curves import assert_near, curve, short
from tests.trainers.tiny_models import random_model


@pytest.mark.nightly
def test_a_traced_run_has_the_curve_of_an_eager_one(trial, tmp_path, monkeypatch):
    """With random weights and two blocks in each encoder; of both encoders."""
    config = short(trial, "flyp", steps=2, data__ood_domains=[])
    config = config.model_copy(update={"model": random_model(tmp_path, "clip")})
    eager = curve(config)
    traced = []
    compile_ = nn.Module.compile

    def trace(module):
        traced.append(module)
        compile_(module, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", trace)
    assert_near(curve(config.model_copy(update={"compile": True})), eager)
    assert len(traced) == 2
