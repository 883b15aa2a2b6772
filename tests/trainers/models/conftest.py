from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from tests.trainers.tiny_models import random_model
from trainers.models.loading import load_clip


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], nn.Module]:
    """A tiny model of a kind with random weights; each is made once."""
    folder: Path = tmp_path_factory.mktemp("models")
    made: dict[str, nn.Module] = {}

    def make(kind: str) -> nn.Module:
        if kind not in made:
            made[kind] = load_clip(random_model(folder, kind))
        return made[kind]

    return make
