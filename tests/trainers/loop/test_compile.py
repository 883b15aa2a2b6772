"""`compile`: with Inductor once, which compiles C++ for a minute, and else with the backend that
traces as Inductor does and then runs PyTorch's own kernels."""

from __future__ import annotations

import shutil
from functools import partialmethod
from pathlib import Path

import pytest
from torch import nn

from tests.trainers.curves import assert_near, curve, short
from tests.trainers.tiny_models import write_config
from trainers.config import TrialConfig, with_overrides


@pytest.fixture
def tiny(trial: TrialConfig, tmp_path: Path) -> TrialConfig:
    """With random weights, two blocks an encoder, and no shifted domains."""
    model = {"name": str(write_config(tmp_path, "clip")), "pretrained": "random"}
    return with_overrides(trial, {"model": model}, "test")


def test_a_traced_run_has_the_curve_of_an_eager_one(
    tiny: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both encoders, with merged weights, and blocks whose second pass is traced as well."""
    config = short(tiny, "r_adapter", steps=2, activation_checkpointing=True, data__ood_domains=[])
    eager = curve(config)
    traced = partialmethod(nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(nn.Module, "compile", traced)
    assert_near(curve(config.model_copy(update={"compile": True})), eager)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="Inductor compiles C++ on a CPU")
def test_a_compiled_run_has_the_curve_of_an_eager_one(
    tiny: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow: C++ is compiled for the image tower, once with gradients and once without."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    config = short(tiny, "ft", steps=2, data__ood_domains=[])
    found, wanted = curve(config.model_copy(update={"compile": True})), curve(config)
    assert found != wanted
    for name, value in wanted[0].items():
        assert found[0][name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
