"""`compile`: with Inductor once, which compiles C++ for a minute, and else with the backend that
traces as Inductor does and then runs PyTorch's own kernels."""

import shutil
from functools import partialmethod

import pytest
from torch import nn

from tests.trainers.curves import assert_near, curve, short
from tests.trainers.tiny_models import KINDS, random_model


def small(trial, method, folder, **vision):
    """With random weights, two blocks an encoder, and no shifted domains."""
    model = random_model(folder, "clip", vision_cfg=KINDS["clip"]["vision_cfg"] | vision)
    config = short(trial, method, steps=2, data__ood_domains=[])
    return config.model_copy(update={"model": model})


@pytest.mark.nightly
def test_a_traced_run_has_the_curve_of_an_eager_one(trial, tmp_path, monkeypatch):
    """Of both encoders."""
    config = small(trial, "flyp", tmp_path)
    eager = curve(config)
    traced = partialmethod(nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(nn.Module, "compile", traced)
    assert_near(curve(config.model_copy(update={"compile": True})), eager)


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("c++") is None, reason="Inductor compiles C++ on a CPU")
def test_a_compiled_run_has_the_curve_of_an_eager_one(trial, tmp_path, monkeypatch):
    """Slow: C++ is compiled for an image tower of one block, with and without gradients."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    config = small(trial, "ft", tmp_path, layers=1)
    found, wanted = curve(config.model_copy(update={"compile": True})), curve(config)
    assert found != wanted
    for name, value in wanted[0].items():
        assert found[0][name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
